"""Images in a program that XLA partitions: the same results, one all-reduce a pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
from jaxbn.backends import xla

DEVICES = 8
SHAPES = {  # of the batch, and its feature axis
    "images": ((16, 4, 5, 3), -1),
    "channels first": ((16, 3, 4, 5), 1),
    "videos": ((8, 2, 4, 5, 3), -1),
    "several feature axes": ((8, 4, 2, 5, 3), (2, 4)),
    "sequences": ((16, 6, 3), -1),
    "vectors": ((16, 3), -1),
}


def case(name, *, offset=0.0, masked=False, dtype=jnp.float32):
    shape, axis = SHAPES[name]
    axes = [a % len(shape) for a in np.atleast_1d(axis)]
    features = tuple(shape[a] for a in sorted(axes))
    generator = np.random.default_rng(0)
    draw = generator.standard_normal
    x, ct = (jnp.asarray(draw(shape), dtype) for _ in range(2))
    scale, bias, mean = (jnp.asarray(draw(features), jnp.float32) for _ in range(3))
    state = jaxbn.init_state(features)._replace(mean=mean + offset)
    where = jnp.asarray(generator.random((shape[0], *[1] * (len(shape) - 1))) < 0.7)
    return x + offset, ct, scale, bias, state, where if masked else None, axis


def step(x, ct, scale, bias, state, where, *, axis):
    """y, the state, and gradients; `ct` is linear in them."""

    def forward(x, scale, bias):
        return jaxbn.batch_norm(
            x, state, scale, bias, axis=axis, where=where, activation="relu"
        )

    y, backward, new = jax.vjp(forward, x, scale, bias, has_aux=True)
    return y, new, backward(ct)


def partitioned(arguments, kind=AxisType.Auto):
    """The compiled step, and its arguments with the batch split over the devices."""
    *arrays, axis = arguments
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(kind,))
    split, same = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, ct, scale, bias, state, where = arrays
    placed = (
        *jax.device_put((x, ct), split),
        *jax.device_put((scale, bias, state), same),
        None if where is None else jax.device_put(where, split),
    )
    function = jax.jit(step, static_argnames="axis")
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return function.lower(*placed, axis=axis).compile, placed


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_one_device(name, masked, kind):
    *arrays, axis = arguments = case(name, masked=masked)
    compile_, placed = partitioned(arguments, kind)
    want = step(*arrays, axis=axis)
    chex.assert_trees_all_close(compile_()(*placed), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_mean_far_from_zero_costs_no_accuracy(offset):
    x, _, scale, bias, state, where, axis = case("images", offset=offset)
    state = jaxbn.init_state(3)  # the first batch: the mean is not known yet
    arguments = (x, jnp.zeros_like(x), scale, bias, state, where, axis)
    compile_, placed = partitioned(arguments)
    y, new, _ = compile_()(*placed)
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    want = (wide - mean) / np.sqrt(var + 1e-5) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(y, np.maximum(want, 0), atol=1e-3)
    np.testing.assert_allclose(new.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(new.var, var, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["images", "channels first", "videos"])
def test_images_need_one_all_reduce_in_each_pass(name, dtype):
    compile_, _ = partitioned(case(name, dtype=dtype))
    text = compile_({"xla_disable_hlo_passes": "cpu-all-reduce-combiner"}).as_text()
    lines = [line for line in text.splitlines() if " all-reduce(" in line]
    # The third is in the branch for a batch far from the running mean.
    assert len(lines) == 3
    assert sum("/cond/" in line for line in lines) == 1
    assert all("f32[2,3]" in line for line in lines)
    assert "all-gather" not in text


def test_sequences_are_summed_over_time_and_batch_at_once():
    """Sums of each time step, had it been kept, would be too many to exchange."""
    compile_, _ = partitioned(case("sequences"))
    text = compile_({"xla_disable_hlo_passes": "cpu-all-reduce-combiner"}).as_text()
    lines = [line for line in text.splitlines() if " all-reduce(" in line]
    assert lines and all("f32[3]" in line for line in lines)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_its_loops_equal_the_others(name, masked):
    x, ct, scale, _, state, where, axis = case(name, masked=masked)
    axes = tuple(sorted(a % x.ndim for a in np.atleast_1d(axis)))
    counted = jnp.ones((), bool) if where is None else where
    count = jnp.broadcast_to(counted, x.shape).sum(
        [i for i in range(x.ndim) if i not in axes], dtype=jnp.float32
    )
    found = [
        (
            loops.moments(x, state.mean, count, where, axes=axes, floor=1e-5),
            loops.sums(ct, x, state.mean, scale, where, axes=axes),
            loops.sums(ct, x, state.mean, None, where, axes=axes),
        )
        for loops in (xla.KERNELS, xla.PARTITIONED)
    ]
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-5)


BY_FEATURES = {  # shape of the batch, its feature axis and the sharding
    "features": ((16, 8), -1, P(None, "m")),
    "both": ((16, 8), -1, P("d", "m")),
    "both by all": ((16, 8), -1, P(None, ("d", "m"))),
    "images": ((4, 8, 2, 2), 1, P("d", "m")),
    "two feature axes": ((8, 4, 2, 8), (1, 3), P(None, "d", None, "m")),
}


def mesh_of_types():
    kinds = (AxisType.Explicit,) * 2
    return jax.make_mesh((2, 4), ("d", "m"), axis_types=kinds)


def placed(tree, spec):
    """On the mesh that is set."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), spec), tree)


def by_features(name, *, masked, along):
    """What one device and a mesh with explicit feature axes give."""
    shape, axis, spec = BY_FEATURES[name]
    axes = sorted(a % len(shape) for a in np.atleast_1d(axis))
    generator = np.random.default_rng(0)
    features = tuple(shape[a] for a in axes)
    x, ct = generator.standard_normal((2, *shape)).astype(np.float32)
    scale, bias = generator.standard_normal((2, *features)).astype(np.float32)
    where = generator.random((shape[0], *[1] * (len(shape) - 1))) < 0.7
    where = jnp.asarray(where) if masked else None
    state = jaxbn.init_state(features)

    def run(x, ct, scale, bias, state):
        moments = jaxbn.moments(x, axis=axis, where=where)
        y = jaxbn.batch_norm_inference(x, state, scale, bias, axis=axis)
        return moments, y, *step(x, ct, scale, bias, state, where, axis=axis)

    want = jax.jit(run)(x, ct, scale, bias, state)
    with jax.set_mesh(mesh_of_types()):
        full = [*spec, *[None] * (len(shape) - len(spec))]
        thin = P(*(full[a] for a in axes)) if along else P()
        arrays = (*placed((x, ct), spec), *placed((scale, bias, state), thin))
        got = jax.jit(run)(*arrays)
    for old, new in zip(arrays[-1], got[3], strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
    chex.assert_trees_all_close(
        jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("along", [False, True])
def test_features_may_be_split_where_types_tell(along):
    by_features("both", masked=True, along=along)


@pytest.mark.slow
@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", BY_FEATURES)
def test_features_may_be_split_in_every_way(name, masked, along):
    by_features(name, masked=masked, along=along)


def test_a_mapped_axis_may_be_split_where_types_tell():
    x = np.random.default_rng(0).standard_normal((4, 8, 2)).astype(np.float32)
    state, mask = jaxbn.init_state(2), jnp.arange(8)[:, None] < 5

    def run(x):
        def layer(x):
            return jax.vmap(lambda v: jaxbn.batch_norm(v, state, where=mask))(x)

        y, backward, new = jax.vjp(layer, x, has_aux=True)
        return y, new, backward(jnp.cos(y))

    want = jax.jit(run)(x)
    with jax.set_mesh(mesh_of_types()):
        got = jax.jit(run)(placed(x, P("m", "d")))
    chex.assert_trees_all_close(
        jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-5
    )
