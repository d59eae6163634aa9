"""The table of a model's statistics tells where evaluation differs from training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import jaxbn
from jaxbn.deploy import Summary, linen_model, nnx_model, summary

KEY = jax.random.key(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="first")(x)
        return nn.BatchNorm(use_running_average=True, name="second", axis=(1, 2))(x)


X = np.zeros((32, 5, 3), np.float32)
NET = Net()
VARIABLES = jax.jit(NET.init)(KEY, X)


def model(mean, var):
    statistics = {**VARIABLES["batch_stats"], "first": {"mean": mean, "var": var}}
    return linen_model(NET, {**VARIABLES, "batch_stats": statistics})


@given(st.integers(0, 2**16), st.floats(-2, 2))
def test_the_numbers_are_those_of_float64(seed, exponent):
    generator = np.random.default_rng(seed)
    mean = generator.standard_normal(3).astype(np.float32)
    var = generator.uniform(0.1, 4, 3).astype(np.float32)
    x = generator.standard_normal(X.shape) * 10**exponent + 3
    x = x.astype(np.float32)
    x[..., 1] = 7.5
    got = summary(model(mean, var), x).layers["first"]
    wide, mean, var = (v.astype(np.float64) for v in (x, mean, var))
    batch_mean, batch_var = wide.mean((0, 1)), wide.var((0, 1))
    want = {
        "mean": mean,
        "var": var,
        "batch_mean": batch_mean,
        "batch_var": batch_var,
        "count": np.full(3, 160),
        "updates": np.zeros(3),
        "shift": (batch_mean - mean) / np.sqrt(var),
        "ratio": batch_var / var,
        "dead": [False, True, False],
    }
    for name, value in want.items():
        np.testing.assert_allclose(
            getattr(got, name), value, rtol=1e-4, atol=1e-9, err_msg=name
        )


def test_the_table_shows_the_worst_of_each_layer():
    x = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)
    found = summary(model(np.array([0.0, -9.0, 0.0]), np.array([1.0, 1.0, 100.0])), x)
    head, first, second = str(found).splitlines()
    assert head.split() == ["layer", *re.findall(r"\w+", head)[1:]]
    name, channels, values, _, shift, ratio, dead = first.split()
    assert (name, channels, values, dead) == ("first", "3", "160", "0")
    assert abs(float(shift) - 9) < 0.3 and float(ratio) < 0.02
    assert second.split()[:3] == ["second", "15", "32"]
    assert len(head) == len(first) == len(second)


def test_the_picture_has_every_layer_and_channel():
    pytest.importorskip("matplotlib")
    left, right = summary(model(np.zeros(3), np.ones(3)), X + 1).plot().axes
    assert [len(line.get_xdata()) for line in left.lines[:2]] == [3, 15]
    assert [t.get_text() for t in left.get_yticklabels()] == ["first", "second"]
    assert right.get_xscale() == "log"


def test_masked_counted_and_empty_layers():
    def call(layer, x):
        return layer(x, mask=jnp.arange(4)[:, None] < x[0, 0])

    options = {"debias": True, "rngs": nnx.Rngs(0), "use_running_average": True}
    layer = jaxbn.nnx.BatchNorm(2, **options)
    layer.count[...] = jnp.full(2, 7.0)
    for valid in (0, 3):
        found = summary(nnx_model(layer, call=call), np.full((4, 2), valid, np.float32))
        (one,) = found.layers.values()
        np.testing.assert_array_equal((one.count, one.updates), [[valid] * 2, [7] * 2])
        assert np.isnan(one.batch_var).all() == np.isnan(one.shift).all() == (not valid)
        assert one.dead.all() == bool(valid)
        assert str(found).split()[-2] == ("0.00" if valid else "nan")


def test_messages():
    with pytest.raises(TypeError, match="`model` must be a Model, got the class Net"):
        summary(Net, X)
    with pytest.raises(ValueError, match=r"`dead_below` must be .*, got -1"):
        summary(model(np.zeros(3), np.ones(3)), X, dead_below=-1)
    assert Summary({}).layers == {}
