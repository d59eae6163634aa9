"""jaxbn.nnx.BatchNorm inside transformations, networks and meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import DEVICES, GROUPS, MODES, assert_close, normal, sharded
from flax import nnx

import jaxbn.nnx

OURS, FLAX = jaxbn.nnx.BatchNorm, nnx.BatchNorm


def make(kind, features=3, **options):
    return kind(features, rngs=nnx.Rngs(0), **options)


def stats(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


class Net(nnx.Module):
    """A network around a normalization layer."""

    def __init__(self, norm, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = norm(5, rngs=rngs)
        self.last = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def step(net, x):
    """Loss, gradients and the statistics after the step."""

    def loss(net, x):
        return jnp.sum(jnp.square(net(x)))

    value, gradients = nnx.value_and_grad(loss)(net, x)
    return value, nnx.to_pure_dict(gradients), stats(net)


def test_a_network_with_ours_equals_the_one_with_flax():
    x = normal((16, 4))
    ours, want = (Net(kind, nnx.Rngs(0)) for kind in (OURS, FLAX))
    for _ in range(2):
        got, wanted = nnx.jit(step)(ours, x), nnx.jit(step)(want, x)
    assert_close(got, wanted)


def test_jit_equals_eager():
    x = normal((16, 4))
    eager, compiled = (Net(OURS, nnx.Rngs(0)) for _ in range(2))
    assert_close(nnx.jit(step)(compiled, x), step(eager, x))


def test_the_graph_definition_is_a_static_argument_although_lists_were_given():
    layer, x = (
        make(OURS, axis=[-1], axis_name="d", axis_groups=[[0, 1]]),
        normal((8, 3)),
    )
    run = jax.jit(
        lambda graph, state, x: nnx.merge(graph, state)(x, True), static_argnums=0
    )
    assert_close(run(*nnx.split(layer), x), make(FLAX)(x, True))


def test_split_and_merge_keep_the_layer():
    layer, x = make(OURS, debias=True, activation="relu"), normal((8, 3))
    layer(x)
    copy = nnx.merge(*nnx.split(layer), copy=True)
    assert_close((copy(x), stats(copy)), (layer(x), stats(layer)), 0)


def test_a_clone_has_statistics_of_its_own():
    layer, x = make(OURS), normal((8, 3))
    before = stats(layer)
    nnx.clone(layer)(x)
    assert_close(stats(layer), before, 0)


def test_remat_updates_the_statistics_once_and_keeps_the_gradients():
    x = normal((16, 4))
    plain, saving = (Net(OURS, nnx.Rngs(0)) for _ in range(2))

    def loss(net, x):
        return jnp.sum(jnp.square(nnx.remat(lambda net, x: net(x))(net, x)))

    value, gradients = nnx.jit(nnx.value_and_grad(loss))(saving, x)
    got = value, nnx.to_pure_dict(gradients), stats(saving)
    assert_close(got, nnx.jit(step)(plain, x))


def layers(kind, number):
    @nnx.split_rngs(splits=number)
    @nnx.vmap
    def build(rngs):
        return kind(3, rngs=rngs)

    return build(nnx.Rngs(0))


def pick(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def test_vmap_over_layers_equals_each_layer_alone_in_every_call():
    many, alone = layers(OURS, 4), [make(OURS) for _ in range(4)]
    x = normal((4, 16, 3))
    for _ in range(2):
        got = nnx.vmap(lambda layer, x: layer(x))(many, x)
        want = [layer(x[i]) for i, layer in enumerate(alone)]
    for i in range(4):
        assert_close((got[i], pick(stats(many), i)), (want[i], stats(alone[i])))


def test_vmap_with_shared_statistics_equals_the_whole_batch():
    layer, whole, x = make(OURS, axis_name="d"), make(FLAX), normal((4, 8, 3))
    run = nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0), axis_name="d")
    for _ in range(2):
        got, want = run(layer, x), whole(x)
    assert_close((got, stats(layer)), (want, stats(whole)))


def test_scan_over_layers_equals_a_loop():
    stack, alone, y = layers(OURS, 3), [make(OURS) for _ in range(3)], normal((16, 3))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return layer(jnp.sin(3 * x))

    got = run(y, stack)
    for layer in alone:
        y = layer(jnp.sin(3 * y))
    assert_close(got, y)
    for i, layer in enumerate(alone):
        assert_close(pick(stats(stack), i), stats(layer))


def test_scan_over_time_carries_the_running_statistics():
    layer, loop, batches = (
        make(OURS, debias=True),
        make(OURS, debias=True),
        normal((5, 8, 3)),
    )

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(layer, x):
        return layer, layer(x)

    _, got = run(layer, batches)
    want = jnp.stack([loop(x) for x in batches])
    assert_close((got, stats(layer)), (want, stats(loop)))


def test_a_change_of_mode_under_jit_is_seen():
    net, x = Net(OURS, nnx.Rngs(0)), normal((16, 4)) + 2
    run = nnx.jit(lambda net, x: net(x))
    run(net, x)
    net.eval()
    before = stats(net)
    got = run(net, x)
    assert_close((got, stats(net)), (net(x), before))


def test_steps_after_the_first_do_not_trace_again():
    traces = []

    @nnx.jit
    def run(layer, x):
        traces.append(None)
        return layer(x)

    layer = make(OURS, debias=True)
    for _ in range(3):
        run(layer, normal((8, 3)))
    assert len(traces) == 1


# --- shared statistics ---------------------------------------------------------------


def over_devices(mode, layer, x, mask=None):
    """Values, statistics and gradients of a layer whose batch is over `DEVICES`."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def lane(variables, batch):
        one = nnx.merge(graph, *variables, copy=True)
        return one(batch[0], mask=batch[1]), stats(one)

    def loss(params, x):
        run = lane if mode is None else MODES[mode](lane)
        y, new = run((params, rest), (x, mask))
        return jnp.sum(jnp.where(valid, jnp.sin(y), 0)), (y, new)

    valid = True if mask is None else mask
    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    value, (gradient, dx) = jax.device_get(run(params, x))
    return value, nnx.to_pure_dict(gradient), dx


@functools.cache
def one_device(*, masked):
    x, mask = sharded()
    return over_devices(None, make(FLAX), x, mask if masked else None)


@pytest.mark.parametrize("mode", MODES)
def test_shared_statistics_equal_one_device_in_values_state_and_gradients(mode):
    got = over_devices(mode, make(OURS, axis_name="d"), sharded()[0])
    assert_close(got, one_device(masked=False))


@pytest.mark.parametrize("mode", MODES)
def test_flax_defect_d5_masked_sync_equals_one_device_with_the_valid_rows(mode):
    got = over_devices(mode, make(OURS, axis_name="d"), *sharded())
    assert_close(got, one_device(masked=True))


@pytest.mark.parametrize("argument", ["axis_groups", "axis_index_groups"])
@pytest.mark.parametrize("mode", MODES)
def test_flax_defect_d8_groups_share_statistics_in_every_mode(mode, argument):
    x, _ = sharded()
    graph, state = nnx.split(make(OURS, axis_name="d", **{argument: GROUPS}))

    def lane(state, x):
        return nnx.merge(graph, state, copy=True)(x), ()

    got, _ = jax.jit(MODES[mode](lane))(state, x)
    for group in map(np.asarray, GROUPS):
        want = make(FLAX)(x[group])
        assert_close(np.asarray(got)[group], np.asarray(want))


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_of_a_module_updates_it(check_vma):
    layer, whole, x = make(OURS, axis_name="d"), make(FLAX), normal((DEVICES * 2, 3))
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    data, same = jax.P("d"), nnx.StateSharding({...: jax.P()})
    run = nnx.shard_map(
        lambda layer, x: layer(x),
        mesh=mesh,
        in_specs=(same, data),
        out_specs=data,
        check_vma=check_vma,
    )
    got, want = run(layer, x), whole(x)
    assert_close(
        jax.device_get((got, stats(layer))), jax.device_get((want, stats(whole)))
    )
