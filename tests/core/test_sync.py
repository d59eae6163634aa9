"""Synchronised statistics equal those of one device with all the valid rows."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sweeps import but_slow

import jaxbn

DEVICES, ROWS, CHANNELS = 8, 8, 3
VALID = np.array([0, 1, 2, 5, 8, 8, 8, 8])
GROUPS = [[0, 1, 2], [7, 3], [4, 5, 6]]


def mesh(kind: AxisType):
    return jax.make_mesh((DEVICES,), ("d",), axis_types=(kind,))


def case(offset=0.0):
    generator = np.random.default_rng(0)
    shape = (DEVICES, ROWS, CHANNELS)
    x = generator.normal(size=shape) * [1, 2, 0.5] + offset
    ct = generator.normal(size=shape)
    where = np.arange(ROWS) < VALID[:, None]
    scale, bias = np.array([1.0, -2.0, 0.5]), np.array([0.1, 0.2, -0.3])
    state = np.array([[0.1, -0.2, 0.3], [1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    state[0] += offset
    state = jaxbn.BatchNormState(*state.astype(np.float32))
    x, scale, bias, ct = (a.astype(np.float32) for a in (x, scale, bias, ct))
    return x, where, state, scale, bias, ct


def layer(x, where, state, scale, bias, ct, **options):
    """Value, state and gradients of the loss sum(y * ct) over the valid rows."""

    def loss(x, scale, bias):
        y, new = jaxbn.batch_norm(
            x, state, scale, bias, where=where[..., None], **options
        )
        return jnp.sum(jnp.where(where[..., None], y * ct, 0)), (y, new)

    gradients, (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return y, new, gradients


def summed(result, axis_name):
    """The gradients of replicated scale and bias, added over devices by the user."""
    y, new, (dx, *rest) = result
    return y, new, (dx, *(jax.lax.psum(g, axis_name) for g in rest))


@functools.cache
def on_one_device(activation):
    return jax.jit(functools.partial(layer, activation=activation))


SAME = 0, None, (0, None, None)  # y, state and gradients on all devices


def shared_layer(*args, activation):
    return summed(layer(*args, axis_name="d", activation=activation), "d")


def by_vmap(activation):
    one = functools.partial(shared_layer, activation=activation)
    in_axes = (0, 0, None, None, None, 0)
    return jax.jit(jax.vmap(one, in_axes, axis_name="d", out_axes=SAME))


def by_pmap(activation):
    one = functools.partial(shared_layer, activation=activation)
    in_axes = (0, 0, None, None, None, 0)
    return jax.pmap(one, axis_name="d", in_axes=in_axes, out_axes=SAME)


def by_shard_map(activation, *, kind, check_vma):
    def one(*args):
        # With checked types the gradient of a replicated argument arrives summed.
        function = layer if check_vma else shared_layer
        options = {"axis_name": "d"} if check_vma else {}
        return function(*args, activation=activation, **options)

    data, same, chosen = P("d"), P(), mesh(kind)
    in_specs = (data, data, same, same, same, data)
    mapped = jax.jit(
        jax.shard_map(
            one,
            mesh=chosen,
            in_specs=in_specs,
            out_specs=(data, same, (data, same, same)),
            check_vma=check_vma,
        )
    )

    def run(*args):
        placed = [
            jax.device_put(arg, NamedSharding(chosen, spec))
            for arg, spec in zip(args, in_specs, strict=True)
        ]
        return mapped(*placed)

    return run


def by_global_view(activation, *, kind):
    chosen = mesh(kind)
    place = functools.partial(jax.device_put, device=NamedSharding(chosen, P("d")))
    program = jax.jit(functools.partial(layer, activation=activation))

    def run(x, where, state, scale, bias, ct):
        with jax.set_mesh(chosen):
            same = jax.device_put((state, scale, bias), NamedSharding(chosen, P()))
            return program(place(x), place(where), *same, place(ct))

    return run


MODES = {
    "vmap": by_vmap,
    "pmap": by_pmap,
    **{
        f"shard_map-{kind.name}-vma={vma}": functools.partial(
            by_shard_map, kind=kind, check_vma=vma
        )
        for kind in (AxisType.Auto, AxisType.Explicit)
        for vma in (True, False)
    },
    **{
        f"global-{kind.name}": functools.partial(by_global_view, kind=kind)
        for kind in (AxisType.Auto, AxisType.Explicit)
    },
}
NAMED = [mode for mode in MODES if not mode.startswith("global")]


@functools.cache
def program(mode, activation):
    """One for each mode: data, masks and states are its arguments."""
    return MODES[mode](activation)


def check_uneven(mode, activation):
    args = case()
    want = on_one_device(activation)(*args)
    got = program(mode, activation)(*args)
    chex.assert_trees_all_close(
        jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-5
    )


# Explicit axes are tested by the global view.
SWEPT = ("shard_map-Auto-vma=False", "shard_map-Explicit-vma=True",
         "shard_map-Explicit-vma=False", "global-Auto")  # fmt: skip
QUICK_MODES = but_slow(MODES, SWEPT)


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_uneven_and_empty_replicas_equal_one_device(mode):
    check_uneven(mode, None)


QUICK = ("shard_map-Auto-vma=True",)


@pytest.mark.parametrize("mode", but_slow(MODES, MODES.keys() - QUICK))
def test_uneven_and_empty_replicas_with_an_activation_equal_one_device(mode):
    check_uneven(mode, "relu")


# The quick suite has `vmap` and `pmap` with masks.
@pytest.mark.parametrize("mode", but_slow(MODES, (*SWEPT, "vmap", "pmap")))
def test_without_a_mask_all_modes_equal_one_device(mode):
    x, where, *rest = case()
    args = (x, np.ones_like(where), *rest)
    got, want = program(mode, None)(*args), on_one_device(None)(*args)
    chex.assert_trees_all_close(
        jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_nothing_valid_anywhere_is_finite_and_leaves_the_state(mode):
    x, where, state, *rest = case()
    got = program(mode, None)(x, np.zeros_like(where), state, *rest)
    y, new, gradients = jax.device_get(got)
    for leaf in jax.tree.leaves((y, gradients)):
        assert np.isfinite(leaf).all()
    chex.assert_trees_all_equal(new, state)


@pytest.mark.parametrize(
    ("mode", "offset"),
    but_slow(
        [
            *((mode, offset) for mode in MODES for offset in (0.0, 1e5)),
            *(("global-Auto", offset) for offset in (10.0, 1e2, 1e3, 1e4)),
        ],
        [(mode, offset) for mode in SWEPT for offset in (0.0, 1e5)],
    ),
)
def test_statistics_far_from_zero_are_right_at_the_first_step(mode, offset):
    x, where, _, scale, bias, ct = case(offset)
    state = jax.device_get(jaxbn.init_state(CHANNELS))
    y, new, _ = program(mode, None)(x, where, state, scale, bias, ct)
    valid = np.asarray(x, np.float64)[where]
    mean, var = valid.mean(0), valid.var(0)
    want = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5)
    want = want * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(y, want, rtol=0, atol=5e-6 if offset == 0 else 1e-4)
    np.testing.assert_allclose(new.var, var, rtol=1e-5)


@functools.cache
def grouped(mode):
    """A program for y and gradients; the state of a group stays on its devices."""

    def one(x, where, ct, state, scale, bias):
        options = {"axis_name": "d", "axis_groups": GROUPS}
        result = layer(x, where, state, scale, bias, ct, **options)
        if "True" not in mode:
            result = summed(result, "d")
        return result[0], *result[2]

    def one_shard(x, where, ct, *same):
        y, dx, *rest = one(x[0], where[0], ct[0], *same)
        return y[None], dx[None], *rest

    in_axes, out_axes = (0, 0, 0, None, None, None), (0, 0, None, None)
    if mode == "vmap":
        return jax.jit(jax.vmap(one, in_axes, axis_name="d", out_axes=out_axes))
    if mode == "pmap":
        return jax.pmap(one, axis_name="d", in_axes=in_axes, out_axes=out_axes)
    mapped = jax.shard_map(
        one_shard,
        mesh=mesh(AxisType.Auto),
        in_specs=(P("d"), P("d"), P("d"), P(), P(), P()),
        out_specs=(P("d"), P("d"), P(), P()),
        check_vma="True" in mode,
    )
    return jax.jit(mapped)


GROUPED = [mode for mode in NAMED if "Explicit" not in mode]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("mode", but_slow(GROUPED, (*SWEPT, "pmap")))
def test_groups_share_statistics_among_their_own_members(mode, offset):
    x, where, state, scale, bias, ct = case()
    # Only the last group is far from the running mean: all must still agree to look
    # again, or a device waits for ever.
    x[GROUPS[-1]] += np.float32(offset)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    y, dx, parts = np.zeros(x.shape), np.zeros(x.shape), []
    for i in GROUPS:
        part = on_one_device(None)(x[i], where[i], state, scale, bias, ct[i])
        y[i], dx[i] = part[0], part[2][0]
        parts.append(part[2])
    got_y, got_dx, *rest = grouped(mode)(x, where, ct, state, scale, bias)
    np.testing.assert_allclose(got_y, y, **tolerance)
    np.testing.assert_allclose(got_dx, dx, **tolerance)
    for got, index in zip(rest, (1, 2), strict=True):
        np.testing.assert_allclose(got, sum(part[index] for part in parts), **tolerance)


def test_several_axis_names_share_over_their_product():
    x, where, state, scale, bias, ct = case()
    want = jax.device_get(on_one_device(None)(x, where, state, scale, bias, ct))

    def one(x, where, ct):
        result = layer(x, where, state, scale, bias, ct, axis_name=("a", "b"))
        return summed(result, ("a", "b"))

    out_axes = (0, None, (0, None, None))
    inner = jax.vmap(one, axis_name="b", out_axes=out_axes)
    outer = jax.vmap(inner, axis_name="a", out_axes=out_axes)
    fold = lambda a: a.reshape(2, 4, *a.shape[1:])  # noqa: E731
    found = jax.jit(outer)(fold(x), fold(where), fold(ct))
    y, new, (dx, *rest) = jax.device_get(found)
    got = (y.reshape(x.shape), new, (dx.reshape(x.shape), *rest))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


BOTH = [(masked, checked) for masked in (True, False) for checked in (True, False)]


@pytest.mark.parametrize(
    ("masked", "check_vma"),
    but_slow(BOTH, [(True, False), (False, False)]),
)
def test_steady_state_needs_one_all_reduce_forward_and_one_backward(check_vma, masked):
    x, where, state, scale, bias, ct = case()

    def one(x, where, state, scale, bias, ct):
        mask = where[..., None] if masked else None

        def forward(x, scale, bias):
            return jaxbn.batch_norm(
                x, state, scale, bias, where=mask, axis_name="d", activation="relu"
            )

        y, backward, new = jax.vjp(forward, x, scale, bias, has_aux=True)
        return y, new, backward(ct)

    data, same = P("d"), P()
    out = (data, same, (data, same if check_vma else data, same if check_vma else data))
    mapped = jax.shard_map(
        one,
        mesh=mesh(AxisType.Auto),
        in_specs=(data, data, same, same, same, data),
        out_specs=out,
        check_vma=check_vma,
    )
    text = jax.jit(mapped).lower(x, where, state, scale, bias, ct).compile().as_text()
    # The numbers of each channel: the count is sent where shapes do not tell it.
    rows = re.findall(r" = f32\[(\d+),\d+\]\S* all-reduce(?:-start)?\(", text)
    assert text.count(" all-reduce") == 2
    assert sorted(map(int, rows)) == [2, 19 if masked else 9]


def test_an_unbound_axis_name_says_how_to_bind_it():
    x, _, state, *_ = case()
    with pytest.raises(ValueError, match=r"`axis_name` must be bound here, got 'gone'"):
        jaxbn.batch_norm(x, state, axis_name="gone")


@pytest.mark.parametrize("wrong", [[[0, 1]], [[0, 0, 1, 2, 3, 4, 5, 6]], [[8]]])
def test_groups_that_are_no_partition_are_refused(wrong):
    x, _, state, *_ = case()
    call = functools.partial(
        jaxbn.batch_norm, state=state, axis_name="d", axis_groups=wrong
    )
    with pytest.raises(ValueError, match="`axis_groups` must contain each position"):
        jax.vmap(call, axis_name="d")(x)


def test_groups_without_an_axis_name_are_refused():
    x, _, state, *_ = case()
    with pytest.raises(ValueError, match="`axis_groups` must come with `axis_name`"):
        jaxbn.batch_norm(x, state, axis_groups=GROUPS)


def test_moments_of_shards_equal_the_moments_of_all():
    x, where, *_ = case(50.0)

    @jax.jit
    def both_ways(x, where):
        shared = jax.vmap(
            lambda x, w: jaxbn.moments(x, where=w[:, None], axis_name="d"),
            axis_name="d",
            out_axes=None,
        )
        return shared(x, where), jaxbn.moments(x, where=where[..., None])

    got, want = both_ways(x, where)
    chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_shared_moments_are_typed_as_equal_on_all_devices():
    x, *_ = case(50.0)
    mapped = jax.shard_map(
        lambda x: jaxbn.moments(x, axis_name="d"),
        mesh=mesh(AxisType.Auto),
        in_specs=P("d"),
        out_specs=P(),
    )
    got, want = jax.jit(mapped)(x), jax.jit(jaxbn.moments)(x)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-5)
