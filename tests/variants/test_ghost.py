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
    return (
        *(jnp.asarray(v, jnp.float32) for v in (x, scale, bias)),
        jnp.asarray(where),
    )


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


def close(got, want, atol=3e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


@settings(max_examples=5)
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([4, 32]),
    update=st.sampled_from(["pooled", "sequential"]),
)
def test_equals_the_float64_reference(seed, size, update):
    x, scale, bias, where = case(seed)
    call = functools.partial(run, ghost_batch_size=size, update=update)
    y, state, _ = jax.jit(call)(x, scale, bias, where)
    want, (mean, var) = reference(x, scale, bias, where, size, update=update)
    # A group of one or two values has a tiny variance now and then.
    np.testing.assert_allclose(y, want, atol=1e-3)
    np.testing.assert_allclose(state.mean, mean, atol=2e-6)
    np.testing.assert_allclose(state.var, var, rtol=3e-6)


def by_shard_map(call, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",))
    specs = (P("d"), P(), P(), P("d"))
    out = (P("d"), P(), (P("d"), P(), P()))
    return jax.jit(
        jax.shard_map(
            functools.partial(call, axis_name="d"),
            mesh=mesh,
            in_specs=specs,
            out_specs=out,
        )
    )


def by_pmap(call, devices):
    def one(*args):
        y, state, (dx, *rest) = call(*args, axis_name="d")
        return y, state, (dx, *(jax.lax.psum(g, "d") for g in rest))

    mapped = jax.pmap(one, "d", in_axes=(0, None, None, 0))

    def whole(x, scale, bias, where):
        split = (v.reshape(devices, -1, *v.shape[1:]) for v in (x, where))
        x, where = split
        y, state, (dx, *rest) = mapped(x, scale, bias, where)
        first = jax.tree.map(lambda v: v[0], (state, rest))
        y, dx = (v.reshape(BATCH, *v.shape[2:]) for v in (y, dx))
        return y, first[0], (dx, *first[1])

    return whole


def by_explicit_axes(call, devices):
    axes = {"axis_types": (AxisType.Explicit,)}
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",), **axes)

    def whole(x, scale, bias, where):
        split, same = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
        x, where = (jax.device_put(v, split) for v in (x, where))
        scale, bias = (jax.device_put(v, same) for v in (scale, bias))
        with jax.set_mesh(mesh):
            y, state, gradient = jax.jit(call)(x, scale, bias, where)
        assert y.sharding.spec == P("d", None, None)
        return y, state, gradient

    return whole


def by_jit(call, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",))
    split, same = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    return jax.jit(call, in_shardings=(split, same, same, split))


@pytest.mark.parametrize("how", [by_shard_map, by_pmap, by_jit, by_explicit_axes])
def test_any_number_of_devices_gives_the_numbers_of_one(how):
    arrays = case()
    want = jax.jit(run)(*arrays)
    for devices in (1, 2, 4, 8):
        close(how(run, devices)(*arrays), want)


@pytest.mark.parametrize("how", [by_shard_map, by_pmap, by_jit])
def test_sequential_update_follows_the_order_of_the_global_batch(how):
    arrays = case()
    call = functools.partial(run, update="sequential")
    close(how(call, 4)(*arrays), jax.jit(call)(*arrays))


@pytest.mark.parametrize("how", [by_shard_map, by_pmap])
def test_a_group_may_span_devices(how):
    arrays = case()
    call = functools.partial(run, ghost_batch_size=16)
    want = jax.jit(call)(*arrays)
    for devices in (4, 8)[: 2 if how is by_shard_map else 1]:
        close(how(call, devices)(*arrays), want)


@pytest.mark.parametrize("devices", [2, 8])
def test_moments_of_all_groups_take_one_all_reduce(devices):
    """Of count, sum and sum of squares, whatever the number of devices and groups."""
    text = by_shard_map(run, devices).lower(*case()).as_text()
    lines = text.splitlines()
    sent = [
        re.findall(r"-> tensor<(\S+)>", " ".join(lines[n : n + 6]))[0]
        for n, line in enumerate(lines)
        if "stablehlo.all_reduce" in line
    ]
    # The second one is in a branch; scale and bias follow, with a row for each group.
    groups = BATCH // SIZE // devices
    assert sent == [*["3x3xf32"] * 2, *[f"{groups}x3xf32"] * (len(sent) - 2)]


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

    last, first = jax.jit(last), jax.jit(first)
    close(first(x), last(x))
    close(jax.vmap(last)(jnp.stack([x, 2 * x])), jnp.stack([last(x), last(2 * x)]))

    def second(f):
        grad = jax.grad(lambda x: jnp.sum(f(x) ** 3))
        return jax.jit(lambda x: jax.jvp(grad, (x,), (jnp.cos(x),))[1])(x)

    def plain(x):
        groups = x.reshape(-1, SIZE, 2, 3)
        mean = groups.mean((1, 2), keepdims=True)
        var = groups.var((1, 2), keepdims=True)
        y = (groups - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        return jax.nn.gelu(y).reshape(x.shape)

    close(second(last), second(plain), atol=1e-3)


@pytest.mark.parametrize("size", [0, 3, 64, -4])
def test_message_for_a_size_that_does_not_divide(size):
    x = jnp.ones((32, 3))
    with pytest.raises(ValueError, match=f"`ghost_batch_size` must divide.*got {size}"):
        ghost_batch_norm(x, jaxbn.init_state(3), ghost_batch_size=size)


def test_messages_for_axis_and_update():
    x, state = jnp.ones((4, 4)), jaxbn.init_state(4)
    with pytest.raises(ValueError, match="`axis` must not be the first axis"):
        ghost_batch_norm(x, state, ghost_batch_size=2, axis=0)
    with pytest.raises(ValueError, match="`update` must be 'pooled' or 'sequential'"):
        ghost_batch_norm(x, state, ghost_batch_size=2, update="no")  # pyright: ignore
