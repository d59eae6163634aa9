"""Weights in variants and modules: zeros and ones are a mask, and modules hand on."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn import deploy, variants

X = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32) + 2
W = np.random.default_rng(1).integers(0, 3, size=(8, 5, 1)).astype(np.float32)
DOMAIN = np.arange(8) % 2


def ghost(**counting):
    return variants.ghost_batch_norm(
        X, jaxbn.init_state(3), ghost_batch_size=4, **counting
    )


def renorm(**counting):
    bounds = {"r_max": 3.0, "d_max": 5.0}
    return variants.batch_renorm(X, variants.init_renorm_state(3), **bounds, **counting)


def domains(**counting):
    states = variants.init_domain_state(2, 3)
    return variants.domain_batch_norm(X, states, domain=DOMAIN, **counting)


def timestep(**counting):
    states = variants.init_timestep_state(2, 3)
    return variants.timestep_batch_norm(X, states, t=1, **counting)


def blend(**counting):
    return variants.eval_blend(X, jaxbn.init_state(3), alpha=0.5, **counting)


VARIANTS = [ghost, renorm, domains, timestep, blend]


def of_each_group(x, w, groups):
    """y of weighted batch normalization of each group, in float64."""
    y = np.empty(x.shape)
    for group in groups:
        part, by = (
            x[group].astype(np.float64),
            np.broadcast_to(w[group], x[group].shape),
        )
        n = by.sum((0, 1))
        mean = (by * part).sum((0, 1)) / n
        var = (by * (part - mean) ** 2).sum((0, 1)) / n
        y[group] = (part - mean) / np.sqrt(var + 1e-5)
    return y


def test_weights_in_variants():
    @jax.jit
    def run():
        return {
            f.__name__: (f(weights=W > 0), f(where=W > 0), f(weights=W))
            for f in VARIANTS
        }

    found = run()
    for as_weights, as_mask, _ in found.values():
        chex.assert_trees_all_close(as_weights, as_mask, rtol=1e-6, atol=1e-6)
    groups = {
        "ghost": [slice(0, 4), slice(4, 8)],
        "domains": [DOMAIN == 0, DOMAIN == 1],
        "timestep": [slice(None)],
    }
    for name, members in groups.items():
        y, _ = found[name][2]
        np.testing.assert_allclose(y, of_each_group(X, W, members), atol=1e-5)
    own = of_each_group(X, W, [[i] for i in range(8)])
    assert found["blend"][2].shape == own.shape
    whole = jaxbn.moments(X, weights=W)
    state = found["ghost"][2][1]
    np.testing.assert_allclose(state.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(state.var, whole.m2 / whole.count, rtol=1e-5)


def test_modules_hand_on_weights_scale_and_bias():
    scale = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)
    bias = scale[::-1]
    y, state = jaxbn.batch_norm(X, jaxbn.init_state(3), scale, bias, weights=W)
    options = {"use_scale": False, "use_bias": False, "debias": True}
    given = {"weights": W, "scale": scale, "bias": bias}
    layer = jaxbn.linen.BatchNorm(use_running_average=False, **options)
    variables = layer.init(jax.random.key(0), X)
    got, new = layer.apply(variables, X, **given, mutable="batch_stats")
    np.testing.assert_allclose(got, y, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], state.mean, rtol=1e-6)
    module = jaxbn.nnx.BatchNorm(3, **options, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(module(X, **given), y, atol=1e-5)
    np.testing.assert_allclose(module.var[...], state.var, rtol=1e-6)
    model = deploy.nnx_model(module, call=lambda layer, x: layer(x, **given))
    (seen,) = model.collect(model.states, X).values()
    np.testing.assert_allclose(seen.mean, state.mean, rtol=1e-6)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_a_layer_has_its_own_scale_or_that_of_the_call(name):
    message = f"`{name}` must be None for a layer with its own.*use_{name}=False"
    module = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        module(X, **{name: np.ones((8, 3), np.float32)})

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = jaxbn.linen.BatchNorm(use_running_average=True)
            return layer(x, **{name: x[:, 0]})

    with pytest.raises(ValueError, match=message):
        Net().init(jax.random.key(0), X)
