"""Which layer goes where: the order of definition, and its absence."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from jaxbn.interop import from_torch
from jaxbn.interop.order import doubt, in_order, names_of

# Sorted by name, the stem is the last in Flax, and the first block in PyTorch.
PAIRS = {"stem": "stem", "a.0": "Block_0/out", "a.1": "Block_1/out", "a.2": "Block_2"}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="out")(x)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2, name="stem")(x)
        for _ in range(2):
            x = Block()(x)
        return nn.Dense(2, name="Block_2")(x)


class Out(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(2, 2, rngs=rngs)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(2, 2, rngs=rngs)
        self.Block_0, self.Block_1 = Out(rngs), Out(rngs)
        self.Block_2 = nnx.Linear(2, 2, rngs=rngs)


def state(names=("weight", "bias")):
    shapes = {"weight": (2, 2), "bias": (2,)}
    return {f"{p}.{n}": np.ones(shapes[n], np.float32) for p in PAIRS for n in names}


def test_layers_are_in_the_order_of_their_definition_or_refused():
    variables = Linen().init(jax.random.key(0), np.ones((1, 2)))
    model = Nnx(nnx.Rngs(0))
    for into, lost in (
        (variables, jax.tree.map(np.asarray, variables)),
        (model, nnx.clone(model)),
    ):
        assert from_torch(state(), into=into).matched == PAIRS
        with pytest.raises(ValueError, match=r"`into` .*of their definition, got \('B"):
            from_torch(state(), into=lost)
        assert from_torch(state(), into=lost, rules=PAIRS).matched == PAIRS
    with pytest.raises(ValueError, match=r"`source` .* definition, got \('a.2', 'stem"):
        from_torch(dict(sorted(state().items())), into=variables)


@pytest.mark.parametrize(
    ("keys", "order", "known"),
    [
        (["b/k", "a/k"], ["b", "a"], True),
        (["a/k", "b/k"], ["a", "b"], False),
        (["a1/k", "a10/k", "a9/k"], ["a1", "a9", "a10"], True),
        (["a/k", "a/b", "b/k", "b/b"], ["a", "b"], True),
        # Of a sorted tree, one part that was replaced tells nothing.
        (["a/k", "a/b", "b/b", "b/k"], ["a", "b"], False),
        (["x/b/k", "x/a/k", "y/k"], ["x/b", "x/a"], True),
    ],
)
def test_what_tells_an_order(keys, order, known):
    names = names_of(keys, "/")
    assert in_order(sorted(order), names, "/") == order
    assert (doubt(order, names, "/") is None) == known


def test_plain_dictionaries_in_a_model_keep_their_order():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.parts = nnx.data({k: nnx.Linear(2, 2, rngs=rngs) for k in "dcba"})

    found = from_torch(state(), into=Net(nnx.Rngs(0)))
    assert list(found.matched.values()) == ["parts/d", "parts/c", "parts/b", "parts/a"]
    assert doubt(["x/a", "x/b"], {"x/a": ["k", "b"], "x/b": ["k", "b"]}, "/")


def test_norms_without_scales_have_the_order_of_their_statistics():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(2, use_bias=False, name="z")(x)
            plain = nn.BatchNorm(True, use_scale=False, use_bias=False, name="b")(x)
            return nn.BatchNorm(True, name="a")(plain)

    norm = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
    affine = {**norm, "weight": np.ones(2), "bias": np.ones(2)}
    layers = {"z": {"weight": np.ones((2, 2))}, "n0": norm, "n1": affine}
    values = {f"{p}.{n}": v for p, layer in layers.items() for n, v in layer.items()}
    variables = Net().init(jax.random.key(0), np.ones((1, 2)))
    assert from_torch(values, into=variables).matched == {
        "z": "z",
        "n0": "b",
        "n1": "a",
    }


def test_one_collection_that_kept_the_order_tells_it():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(True, name="a")(nn.BatchNorm(True, name="b")(x))

    names = ("running_mean", "running_var", "weight", "bias")
    values = {f"n{i}.{name}": np.ones(2) for i in range(2) for name in names}
    variables = Net().init(jax.random.key(0), np.ones((1, 2)))
    for lost in variables:
        into = {**variables, lost: jax.tree.map(np.asarray, variables[lost])}
        assert from_torch(values, into=into).matched == {"n0": "b", "n1": "a"}
