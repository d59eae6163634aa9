"""Comparing refuses what cannot be compared, and hides nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import interop

LAYER = interop.Layer(jaxbn.init_state(2))
X = np.ones((4, 2), np.float32)


def same(x):
    return np.zeros_like(x)


def statistics():
    return np.zeros((1, 2)), np.ones((1, 2))


PEER = interop.Peer(same, same, statistics)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "`batches` must be a list of arrays, got None"),
        ("ab", "`batches` must be a list of arrays, got 'ab'"),
        ({}, "`batches` must be a list of arrays, got {}"),
        ([], "`batches` must contain a batch, got none"),
        ([None], r"`batches\[0\]` must be an array of numbers, got None"),
        (
            X,
            r"`batches\[0\]` must have examples with 2 .* got shape \(2,\)\. Write `",
        ),
        ([X, X.T], r"`batches\[1\]` must have .*, got shape \(2, 4\)"),
        ([X[:0]], r"`batches\[0\]` must have examples .*, got shape \(0, 2\)"),
        ([X.astype(int)], r"`batches\[0\]` must be floating point, got int64"),
        ([X * np.nan], r"`batches\[0\]` must be finite, got nan"),
    ],
)
def test_batches_must_be_those_of_the_layer(batches, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.compare(LAYER, PEER, batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": lambda x: 1 / 0},
            "`batches` must suit .*, got ZeroDivisionError for",
        ),
        ({"train": None}, "`batches` must suit the other side, got TypeError"),
        (
            {"evaluate": lambda x: x.T},
            r"`peer.evaluate` returns .*\(4, 2\), got \(2, 4\)",
        ),
        ({"train": lambda x: "y"}, "`peer.train` returns must be an array of numbers"),
        (
            {"statistics": lambda: (X,)},
            "`batches` must suit .* 2 arrays expected, got 1",
        ),
        (
            {"statistics": lambda: (X, X)},
            r"`peer.statistics` returns .*\(2,\), got \(4,",
        ),
    ],
)
def test_the_other_side_must_return_the_same_shapes(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.compare(LAYER, PEER._replace(**changes), [X])


def test_a_peer_and_a_layer_are_asked_for():
    with pytest.raises(
        TypeError, match=r"`peer` must be a jaxbn.interop.Peer, got None"
    ):
        interop.compare(LAYER, None, [X])
    with pytest.raises(
        TypeError, match=r"`layer` must be a jaxbn.interop.Layer, got 3"
    ):
        interop.compare(3, PEER, [X])


def test_nan_and_imaginary_parts_are_differences():
    got = interop.compare(LAYER, PEER._replace(train=lambda x: x * np.nan), [X])
    assert np.isnan(got.train) and got.mean > 0
    got = interop.compare(LAYER, PEER._replace(train=lambda x: same(x) + 3j), [X])
    assert got.train == pytest.approx(3)


def test_both_sides_get_the_type_that_jax_computes_in():
    kinds = []

    def train(x):
        kinds.append(x.dtype)
        return same(x)

    interop.compare(LAYER, PEER._replace(train=train), [X.astype(np.float64)])
    assert kinds == [jnp.zeros(()).dtype]
