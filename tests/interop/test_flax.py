"""Flax layers and their counterparts agree, in both directions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn import interop


def batches(steps=5):
    rng = np.random.default_rng(1)
    return [rng.normal(1, 2, (2, 4, 3)).astype(np.float32) for _ in range(steps)]


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm(momentum=0.9),
        nn.BatchNorm(use_scale=False, epsilon=1e-3, axis=1),
        jaxbn.linen.BatchNorm(momentum=0.9, debias=True, unbiased=True),
        jaxbn.linen.BatchNorm(momentum=None),
    ],
)
def test_linen_agrees_over_five_steps_and_makes_the_round_trip(module):
    x = batches()[0]
    variables = module.init(jax.random.key(0), x, use_running_average=True)
    assert max(interop.check_linen(module, variables, batches())) < 3e-6
    _, new = module.apply(
        variables, x, use_running_average=False, mutable="batch_stats"
    )
    variables = {**variables, **new}
    got = interop.to_linen(interop.from_linen(module, variables))
    jax.tree.map(np.testing.assert_array_equal, got, variables)


def test_a_layer_inside_a_model_is_read_and_written_at_its_path():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=True)
            return nn.Sequential([nn.Dense(3), norm])(x)

    variables = Net().init(jax.random.key(0), batches()[0])
    path = "BatchNorm_0"
    layer = interop.from_linen(nn.BatchNorm(), variables, path=path)
    layer = layer._replace(bias=jnp.arange(3.0))
    got = interop.to_linen(layer, variables, path=path)
    assert jax.tree.structure(got) == jax.tree.structure(variables)
    np.testing.assert_array_equal(got["params"][path]["bias"], [0, 1, 2])
    with pytest.raises(ValueError, match="`path` must lead to running statistics, got"):
        interop.from_linen(nn.BatchNorm(), variables)


def test_nnx_agrees_over_five_steps_and_makes_the_round_trip():
    source = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    assert max(interop.check_nnx(source, batches())) < 3e-6
    np.testing.assert_array_equal(source.mean[...], 0)
    source(jnp.asarray(batches()[0]))
    target = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    layer = interop.from_nnx(source)
    interop.to_nnx(layer, target)
    jax.tree.map(np.testing.assert_array_equal, interop.from_nnx(target), layer)


@pytest.mark.parametrize("options", [{"activation": "relu"}, {"axis": (1, 2)}])
def test_what_a_layer_cannot_hold_is_refused(options):
    shape = (3, 2) if "axis" in options else 2
    source = jaxbn.nnx.BatchNorm(shape, rngs=nnx.Rngs(0), **options)
    (name,) = options
    with pytest.raises(ValueError, match=f"The layer must have .*{name}"):
        interop.from_nnx(source)


def test_message_for_a_target_without_bias():
    target = nnx.BatchNorm(3, use_bias=False, rngs=nnx.Rngs(0))
    layer = interop.Layer(jaxbn.init_state(3), bias=jnp.ones(3))
    with pytest.raises(ValueError, match="`target` must have a bias, got none"):
        interop.to_nnx(layer, target)
