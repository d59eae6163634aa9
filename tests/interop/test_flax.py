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
    with pytest.raises(ValueError, match=f"`source` must have .*{name}"):
        interop.from_nnx(source)


@pytest.mark.parametrize(
    ("module", "path", "message"),
    [
        (nn.Dense(3), "norm", r"`module` must be a `BatchNorm` of flax.linen.*Dense"),
        (nn.BatchNorm, "norm", "`module` must be a .*, got the class BatchNorm"),
        (nn.BatchNorm(), "nrom", r"`path` must .*got 'nrom'. .* there are \['norm'\]"),
        (nn.BatchNorm(), "norm/mean", r"`path` must .* there are \['norm'\]"),
        (nn.BatchNorm(), None, "`path` must be a string, got None"),
        (nn.BatchNorm(use_bias=False), "norm", "`variables` .*scale of `module` at 'n"),
        (jaxbn.linen.BatchNorm(debias=True), "norm", "must have mean, var, count, sca"),
        (jaxbn.linen.BatchRenorm(), "norm", "got BatchRenorm"),
    ],
)
def test_a_linen_layer_is_read_with_its_own_module_only(module, path, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_linen(module, VARIABLES, path=path)


LAYER = interop.Layer(jaxbn.init_state(3), jnp.ones(3), jnp.zeros(3))
VARIABLES = {
    "params": {"norm": {"scale": jnp.ones(3), "bias": jnp.ones(3, jnp.bfloat16)}},
    "batch_stats": {"norm": {"mean": jnp.ones(3), "var": jnp.ones(3)}},
}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({}, "nrom", r"`path` must .*got 'nrom'. .* there are \['norm'\]"),
        ({}, "", r"`path` must .*got ''. .* there are \['norm'\]"),
        ({"scale": None}, "norm", "must have mean, var, bias of `layer`, got .*scale"),
        ({"debias": True}, "norm", "must have mean, var, count, .*, got .*mean, var"),
        ({"momentum": None}, "norm", "must have mean, var, count, .*, got .*mean, var"),
    ],
)
def test_a_linen_layer_is_written_where_one_with_its_arrays_is(changes, path, message):
    with pytest.raises(ValueError, match=message):
        interop.to_linen(LAYER._replace(**changes), VARIABLES, path=path)


def test_a_linen_layer_of_another_size_is_refused_and_types_stay():
    got = interop.to_linen(LAYER, VARIABLES, path="norm")
    assert got["params"]["norm"]["bias"].dtype == jnp.bfloat16
    small = interop.Layer(jaxbn.init_state(2), jnp.ones(2), jnp.zeros(2))
    with pytest.raises(
        ValueError, match=r"shape \(2,\) like `layer` for its mean, got"
    ):
        interop.to_linen(small, VARIABLES, path="norm")
    partial = {"batch_stats": VARIABLES["batch_stats"]}
    with pytest.raises(ValueError, match="must have mean, var, scale, bias of `layer`"):
        interop.to_linen(LAYER, partial, path="norm")


def test_boxes_of_metadata_stay_around_what_is_written():
    boxed = jax.tree.map(lambda v: nn.Partitioned(v, ("data",)), VARIABLES)
    layer = interop.from_linen(nn.BatchNorm(), boxed, path="norm")
    got = interop.to_linen(layer, boxed, path="norm")
    assert jax.tree.structure(got) == jax.tree.structure(boxed)
