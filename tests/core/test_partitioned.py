"""Images in a program that XLA partitions: the same results, one all-reduce a pass."""

import functools
import re

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
# The first axis is of the features, so it is not the one that is split.
UNSPLIT = {"features first": ((3, 8, 2, 5), 0)}


def case(name, *, offset=0.0, masked=False, dtype=jnp.float32):
    shape, axis = (SHAPES | UNSPLIT)[name]
    axes = [a % len(shape) for a in np.atleast_1d(axis)]
    features = tuple(shape[a] for a in sorted(axes))
    generator = np.random.default_rng(0)
    draw = generator.standard_normal
    x, ct = (draw(shape).astype(dtype) for _ in range(2))
    scale, bias, mean = (draw(features).astype(np.float32) for _ in range(3))
    first = jax.device_get(jaxbn.init_state(features))
    state = first._replace(mean=mean + np.float32(offset))
    where = generator.random((shape[0], *[1] * (len(shape) - 1))) < 0.7
    return x + x.dtype.type(offset), ct, scale, bias, state, where if masked else None


def step(x, ct, scale, bias, state, where, *, axis):
    """y, the state, and gradients; `ct` is linear in them."""

    def forward(x, scale, bias):
        return jaxbn.batch_norm(
            x, state, scale, bias, axis=axis, where=where, activation="relu"
        )

    y, backward, new = jax.vjp(forward, x, scale, bias, has_aux=True)
    return y, new, backward(ct)


def both_steps(x, ct, scale, bias, state, where, *, axis):
    """Without and with the mask: the programs are independent, but compiled once."""
    return {
        "all": step(x, ct, scale, bias, state, None, axis=axis),
        "masked": step(x, ct, scale, bias, state, where, axis=axis),
    }


@functools.cache
def on_one_device(axis):
    return jax.jit(functools.partial(both_steps, axis=axis))


def over_devices(arrays, kind=AxisType.Auto):
    """A mesh, and the arguments of a step with the batch split over it."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(kind,))
    split, same = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, ct, scale, bias, state, where = arrays
    return mesh, (
        *jax.device_put((x, ct), split),
        *jax.device_put((scale, bias, state), same),
        None if where is None else jax.device_put(where, split),
    )


def partitioned(function, arrays, axis, kind=AxisType.Auto):
    """The lowered function, and its arguments with the batch split over the devices."""
    mesh, split = over_devices(arrays, kind)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(functools.partial(function, axis=axis)).lower(*split), split


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
QUICK = {"images": (AUTO,), "channels first": (EXPLICIT,)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name, kind, marks=[] if kind in QUICK.get(name, ()) else [pytest.mark.slow],
            id=f"{name}-{kind.name}",
        )
        for name in SHAPES
        for kind in (AUTO, EXPLICIT)
    ],
)  # fmt: skip
def test_equals_one_device_with_and_without_a_mask(name, kind):
    arrays, axis = case(name, masked=True), SHAPES[name][1]
    lowered, split = partitioned(both_steps, arrays, axis, kind)
    got = jax.device_get(lowered.compile()(*split))
    want = jax.device_get(on_one_device(axis)(*arrays))
    for mask in want:
        chex.assert_trees_all_close(
            got[mask], want[mask], rtol=1e-5, atol=1e-4, custom_message=mask
        )


@functools.cache
def images_on_a_mesh():
    lowered, _ = partitioned(step, case("images"), -1)
    return lowered.compile()


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_mean_far_from_zero_costs_no_accuracy(offset):
    x, _, scale, bias, _, where = case("images", offset=offset)
    state = jax.device_get(jaxbn.init_state(3))  # the first batch: no mean is known yet
    arguments = (x, np.zeros_like(x), scale, bias, state, where)
    y, new, _ = images_on_a_mesh()(*over_devices(arguments)[1])
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    want = (wide - mean) / np.sqrt(var + 1e-5) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(y, np.maximum(want, 0), atol=1e-3)
    np.testing.assert_allclose(new.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(new.var, var, rtol=1e-5)


WITHOUT_COMBINER = {"xla_disable_hlo_passes": "cpu-all-reduce-combiner"}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("images", jnp.float32),
        ("images", jnp.bfloat16),
        ("channels first", jnp.float32),
        pytest.param("videos", jnp.float32, marks=pytest.mark.slow),
        pytest.param("channels first", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("videos", jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_images_need_one_all_reduce_in_each_pass(name, dtype):
    lowered, _ = partitioned(step, case(name, dtype=dtype), SHAPES[name][1])
    text = lowered.compile(WITHOUT_COMBINER).as_text()
    lines = [line for line in text.splitlines() if " all-reduce(" in line]
    assert len(lines) == 2
    assert not re.search(r" (conditional|while|all-gather|all-to-all)\(", text)


def test_sequences_are_summed_over_time_and_batch_at_once():
    """Sums of each time step, had it been kept, would be too many to exchange."""
    lowered, _ = partitioned(step, case("sequences"), -1)
    text = lowered.compile(WITHOUT_COMBINER).as_text()
    lines = [line for line in text.splitlines() if " all-reduce(" in line]
    assert lines and all(re.search(r"f32\[(9,1,1,|2,)?3\]", line) for line in lines)


@functools.partial(jax.jit, static_argnames="axes")
def all_loops(x, ct, scale, shift, where, *, axes):
    """What all sets of loops give, without and with the mask."""

    def found(loops, where):
        center, delta, m2, _ = loops.moments(x, where, axes=axes)
        return (
            (center + delta, m2),
            loops.sums(ct, x, shift, scale, where, axes=axes),
            loops.sums(ct, x, shift, None, where, axes=axes),
        )

    sets = (
        xla.kernels(),
        xla.kernels(DEVICES),
        xla.kernels(DEVICES, "tpu"),
        xla.kernels(1, "gpu"),
        xla.kernels(DEVICES, "gpu"),
    )
    return [[found(loops, mask) for mask in (None, where)] for loops in sets]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if slow else [])
        for name in SHAPES | UNSPLIT
        for slow in [name != "images"]
    ],
)
def test_its_loops_equal_the_others(name):
    x, ct, scale, _, state, where = case(name, masked=True)
    axes = tuple(sorted(a % x.ndim for a in np.atleast_1d((SHAPES | UNSPLIT)[name][1])))
    want, *others = jax.device_get(
        all_loops(x, ct, scale, state.mean, where, axes=axes)
    )
    for found in others:
        chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-5)


BY_TYPES = {  # shape of the batch, its feature axis and the sharding
    "features": ((16, 8), -1, P(None, "m")),
    "both": ((16, 8), -1, P("d", "m")),
    "both by all": ((16, 8), -1, P(None, ("d", "m"))),
    "images": ((4, 8, 2, 2), 1, P("d", "m")),
    "two feature axes": ((8, 4, 2, 8), (1, 3), P(None, "d", None, "m")),
    "rows": ((8, 6, 4, 3), -1, P("d", None, "m")),
    "rows behind the first": ((3, 4, 8, 5), -1, P(None, "d", "m")),
    "rows of channels first": ((4, 3, 4, 8), 1, P("d", None, None, "m")),
    "rows of features first": ((3, 8, 4), 0, P(None, "d", "m")),
}


def mesh_of_types():
    kinds = (AxisType.Explicit,) * 2
    return jax.make_mesh((2, 4), ("d", "m"), axis_types=kinds)


def placed(tree, spec):
    """On the mesh that is set."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), spec), tree)


def typed_case(name, *, masked):
    shape, axis, _ = BY_TYPES[name]
    axes = sorted(a % len(shape) for a in np.atleast_1d(axis))
    generator = np.random.default_rng(0)
    features = tuple(shape[a] for a in axes)
    x, ct = generator.standard_normal((2, *shape)).astype(np.float32)
    scale, bias = generator.standard_normal((2, *features)).astype(np.float32)
    where = generator.random((shape[0], *[1] * (len(shape) - 1))) < 0.7
    where = jnp.asarray(where) if masked else None
    state = jax.device_get(jaxbn.init_state(features))

    def run(x, ct, scale, bias, state):
        moments = jaxbn.moments(x, axis=axis, where=where)
        y = jaxbn.batch_norm_inference(x, state, scale, bias, axis=axis)
        return moments, y, *step(x, ct, scale, bias, state, where, axis=axis)

    return run, axes, (x, ct, scale, bias, state)


@functools.cache
def typed_on_one_device(name, *, masked):
    run, _, arrays = typed_case(name, masked=masked)
    return jax.device_get(jax.jit(run)(*arrays))


def by_types(name, *, masked, along):
    """What one device and a mesh with explicit axes give."""
    run, axes, (x, ct, *vectors) = typed_case(name, masked=masked)
    spec = BY_TYPES[name][2]
    with jax.set_mesh(mesh_of_types()):
        full = [*spec, *[None] * (x.ndim - len(spec))]
        thin = P(*(full[a] for a in axes)) if along else P()
        arrays = (*placed((x, ct), spec), *placed(tuple(vectors), thin))
        got = jax.jit(run)(*arrays)
    for old, new in zip(arrays[-1], got[3], strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
    want = typed_on_one_device(name, masked=masked)
    chex.assert_trees_all_close(jax.device_get(got), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "masked"), [("both", True), ("rows", False)])
def test_axes_may_be_split_where_types_tell(name, masked):
    by_types(name, masked=masked, along=True)


@pytest.mark.slow
@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", BY_TYPES)
def test_axes_may_be_split_in_every_way(name, masked, along):
    by_types(name, masked=masked, along=along)


# Of x, scale and bias, mean and var, count; None: made before the mesh was set.
PLACES = [
    (P("d", None), P("m"), P("m"), P()),
    (P(None, "m"), P(), P("d"), P("m")),
    (P("d", "m"), None, None, None),
    (P(), P("m"), P("m"), None),
]


def test_all_arguments_may_lie_in_different_places():
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    vectors, state = (np.full(8, 2, "f"), np.ones(8, "f")), jaxbn.init_state(8)

    @jax.jit
    def run(x, vectors, state):
        y, new = jaxbn.batch_norm(x, state, *vectors, activation="relu")
        again = jaxbn.update(new, jaxbn.moments(x), unbiased=True)
        return y, new, again, jaxbn.batch_norm_inference(x, state, *vectors)

    want = jax.device_get(run(x, vectors, state))
    for of_x, of_vectors, of_state, of_count in PLACES:
        with jax.set_mesh(mesh_of_types()):

            def put(tree, spec):
                return (
                    jax.tree.map(jnp.asarray, tree)
                    if spec is None
                    else placed(tree, spec)
                )

            mean, var, count = state
            there = jaxbn.BatchNormState(
                *put((mean, var), of_state), put(count, of_count)
            )
            got = run(put(x, of_x), put(vectors, of_vectors), there)
        for new, old in zip(got[1], there, strict=True):
            kept = new.sharding.is_equivalent_to(old.sharding, 1)
            assert kept or not isinstance(old.sharding, NamedSharding)
        chex.assert_trees_all_close(jax.device_get(got), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
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
