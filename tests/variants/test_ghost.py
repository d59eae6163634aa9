"""Ghost batches give the same numbers on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from sweeps import but_slow

import jaxbn
from jaxbn.variants.ghost import ghost_batch_norm

P = PartitionSpec
BATCH, SIZE = 32, 4


def case(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, (BATCH, 2, 3))
    where = rng.random((BATCH, 2, 1)) < 0.7
    where[:SIZE] = False
    scale, bias = rng.normal(size=(2, 3))
    return *(v.astype(np.float32) for v in (x, scale, bias)), where


def reference(x, scale, bias, where, size=SIZE, momentum=0.9, update="pooled"):
    """Float64 NumPy, group after group, starting from mean 0 and variance 1."""
    x, scale, bias = (np.asarray(v, np.float64) for v in (x, scale, bias))
    where = np.broadcast_to(where, x.shape)
    out, running, steps, weight = [], [np.zeros(3), np.ones(3)], 0, 1.0

    def follow(values):
        nonlocal steps, weight
        if not len(values):
            return
        steps += 1
        weight = (1 - momentum) / (1 - momentum**steps)
        for i, new in enumerate((values.mean(0), values.var(0))):
            running[i] = running[i] + weight * (new - running[i])

    for i in range(0, len(x), size):
        group, mask = x[i : i + size], where[i : i + size, :, 0]
        values = group[mask]
        mean = values.mean(0) if len(values) else np.zeros(3)
        var = values.var(0) if len(values) else np.ones(3)
        out.append((group - mean) / np.sqrt(var + 1e-5) * scale + bias)
        if update == "sequential":
            follow(values)
    if update == "pooled":
        follow(x[where[..., 0]])
    return np.concatenate(out), running


def run(x, scale, bias, where, **options):
    def loss(x, scale, bias):
        options_ = {"ghost_batch_size": SIZE, "momentum": 0.9, **options}
        state = jaxbn.init_state(3)
        y, state = ghost_batch_norm(x, state, scale, bias, where=where, **options_)
        return jnp.sum(jnp.sin(y) * where), (y, state)

    grads, (y, state) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return y, state, grads


def close(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


@jax.jit
def of_every_size(x, scale, bias, where):
    state, out = jaxbn.init_state(3), {}
    for size in (4, 32):
        for update in ("pooled", "sequential"):
            options = {"ghost_batch_size": size, "momentum": 0.9, "update": update}
            layer = functools.partial(ghost_batch_norm, where=where, **options)
            out[size, update] = layer(x, state, scale, bias)
    return out


@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_equals_the_float64_reference(seed):
    arrays = case(seed)
    for (size, update), (y, state) in of_every_size(*arrays).items():
        want, (mean, var) = reference(*arrays, size, update=update)
        name = f"{size = }, {update = }"
        # A group of one or two values has a tiny variance now and then.
        np.testing.assert_allclose(y, want, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(state.mean, mean, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(state.var, var, rtol=3e-6, err_msg=name)


# `wide` groups span devices, if these are four or more.
CALLS = {
    "pooled": run,
    "sequential": functools.partial(run, update="sequential"),
    "wide": functools.partial(run, ghost_batch_size=16),
}


def several(names):
    """The named calls in one program."""

    def call(*arrays, **options):
        return {name: CALLS[name](*arrays, **options) for name in names}

    return call


def by_shard_map(names, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",))
    out = (P("d"), P(), (P("d"), P(), P()))
    return jax.jit(
        jax.shard_map(
            functools.partial(several(names), axis_name="d"),
            mesh=mesh,
            in_specs=(P("d"), P(), P(), P("d")),
            out_specs=dict.fromkeys(names, out),
        )
    )


def by_pmap(names, devices):
    def one(*args):
        return {
            name: (y, state, (dx, *(jax.lax.psum(g, "d") for g in rest)))
            for name, (y, state, (dx, *rest)) in several(names)(
                *args, axis_name="d"
            ).items()
        }

    mapped = jax.pmap(one, "d", in_axes=(0, None, None, 0))

    def whole(x, scale, bias, where):
        x, where = (v.reshape(devices, -1, *v.shape[1:]) for v in (x, where))
        got = {}
        for name, results in jax.device_get(mapped(x, scale, bias, where)).items():
            y, state, (dx, *rest) = results
            state, rest = jax.tree.map(lambda v: v[0], (state, rest))
            y, dx = (v.reshape(BATCH, *v.shape[2:]) for v in (y, dx))
            got[name] = y, state, (dx, *rest)
        return got

    return whole


def by_explicit_axes(names, devices):
    axes = {"axis_types": (AxisType.Explicit,)}
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",), **axes)

    def whole(x, scale, bias, where):
        split, same = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
        x, where = (jax.device_put(v, split) for v in (x, where))
        scale, bias = (jax.device_put(v, same) for v in (scale, bias))
        with jax.set_mesh(mesh):
            got = jax.jit(several(names))(x, scale, bias, where)
        for y, *_ in got.values():
            assert y.sharding.spec == P("d", None, None)
        return got

    return whole


def by_jit(names, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",))
    split, same = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    return jax.jit(several(names), in_shardings=(split, same, same, split))


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(several(tuple(CALLS)))(*case()))


def on_all(how):
    """Four devices with all that this way is tested for, then other numbers."""
    names = {
        by_shard_map: ("pooled", "wide"), by_pmap: ("wide",),
        by_jit: ("sequential",), by_explicit_axes: ("pooled",),
    }  # fmt: skip
    first = (how, 4, names[how])
    marks = [] if how in (by_shard_map, by_jit) else [pytest.mark.slow]
    yield pytest.param(*first, id=f"{how.__name__}-4", marks=marks)
    if rest := tuple(name for name in CALLS if name not in names[how]):
        slow = {"id": f"{how.__name__}-4-rest", "marks": pytest.mark.slow}
        yield pytest.param(how, 4, rest, **slow)
    for devices in (1, 2, 8):
        wide = how is by_shard_map and devices == 8
        rest = (how, devices, ("pooled", "wide") if wide else ("pooled",))
        yield pytest.param(
            *rest, id=f"{how.__name__}-{devices}", marks=pytest.mark.slow
        )


WAYS = (by_shard_map, by_pmap, by_jit, by_explicit_axes)


@pytest.mark.parametrize(
    ("how", "devices", "names"), [case for how in WAYS for case in on_all(how)]
)
def test_any_number_of_devices_gives_the_numbers_of_one(how, devices, names):
    """Also with a sequential update and with groups that span devices."""
    got = how(names, devices)(*case())
    for name in names:
        close({name: got[name]}, {name: on_one_device()[name]})


@pytest.mark.parametrize("devices", but_slow([2, 8], [2]))
def test_moments_of_all_groups_take_one_all_reduce(devices):
    """Of count, means and squares, whatever the number of devices and groups."""
    text = by_shard_map(("pooled",), devices).lower(*case()).compile().as_text()
    types = " ".join(re.findall(r"= (.*) all-reduce\(", text))
    sent = re.findall(r"f32\[(\d+),3\]", types)
    # Scale and bias follow, with a row for each group.
    groups = BATCH // SIZE // devices
    assert sorted(sent) == sorted(["19", str(groups), str(groups)])


def test_channels_first_vmap_and_second_order():
    x, scale, bias, _ = case()
    options = {"ghost_batch_size": SIZE, "activation": "gelu"}
    state = jaxbn.init_state(3)

    def last(x):
        return ghost_batch_norm(x, state, scale, bias, **options)[0]

    def first(x):
        x = jnp.moveaxis(x, -1, 1)
        y = ghost_batch_norm(x, state, scale, bias, axis=1, **options)[0]
        return jnp.moveaxis(y, 1, -1)

    def second(f):
        grad = jax.grad(lambda x: jnp.sum(f(x) ** 3))
        return lambda x: jax.jvp(grad, (x,), (jnp.cos(x),))[1]

    def plain(x):
        groups = x.reshape(-1, SIZE, 2, 3)
        mean = groups.mean((1, 2), keepdims=True)
        var = groups.var((1, 2), keepdims=True)
        y = (groups - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        return jax.nn.gelu(y).reshape(x.shape)

    @jax.jit
    def program(x):
        return {
            "last": last(x),
            "first": first(x),
            "both": jax.vmap(last)(jnp.stack([x, 2 * x])),
            "twice": last(2 * x),
            "second": second(last)(x),
            "plain": second(plain)(x),
        }

    got = program(x)
    close(got["first"], got["last"])
    close(got["both"], np.stack([got["last"], got["twice"]]))
    close(got["second"], got["plain"], atol=1e-3)


@pytest.mark.parametrize("size", [0, 3, 64, -4])
def test_message_for_a_size_that_does_not_divide(size):
    x = np.ones((32, 3), np.float32)
    must = "divide" if size > 0 else "be at least 1"
    with pytest.raises(ValueError, match=f"`ghost_batch_size` must {must}.*got {size}"):
        ghost_batch_norm(x, jaxbn.init_state(3), ghost_batch_size=size)


def test_messages_for_axis_and_update():
    x, state = np.ones((4, 4), np.float32), jaxbn.init_state(4)
    with pytest.raises(ValueError, match="`axis` must not be the first axis"):
        ghost_batch_norm(x, state, ghost_batch_size=2, axis=0)
    with pytest.raises(ValueError, match="`update` must be 'pooled' or 'sequential'"):
        jax.eval_shape(
            lambda: ghost_batch_norm(x, state, ghost_batch_size=2, update="no")  # pyright: ignore
        )
