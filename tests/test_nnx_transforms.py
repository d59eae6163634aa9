"""jaxbn.nnx.BatchNorm inside transformations, networks and meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import (
    DEVICES,
    GROUPS,
    MODES,
    assert_close,
    differentiate,
    normal,
    sharded,
)
from flax import nnx
from sweeps import but_slow

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


X = normal((16, 4))


def step(net, x):
    """Loss, gradients and the statistics after the step."""

    def loss(net, x):
        return jnp.sum(jnp.square(net(x)))

    value, gradients = nnx.value_and_grad(loss)(net, x)
    return value, nnx.to_pure_dict(gradients), stats(net)


compiled_step = nnx.jit(step)


@functools.cache
def two_steps():
    net = Net(OURS, nnx.Rngs(0))
    return [jax.device_get(compiled_step(net, X)) for _ in range(2)]


def test_a_network_with_ours_equals_the_one_with_flax():
    net = Net(FLAX, nnx.Rngs(0))
    for got in two_steps():
        assert_close(got, compiled_step(net, X))


def test_jit_equals_eager():
    net, (value, _, new) = Net(OURS, nnx.Rngs(0)), two_steps()[0]
    want = np.sum(np.square(net(X)))
    assert_close((value, new), (want, stats(net)))


@pytest.mark.slow  # Each operation of the derivative is a program of its own.
def test_gradients_under_jit_equal_eager_ones():
    assert_close(two_steps()[0], step(Net(OURS, nnx.Rngs(0)), X))


def test_the_graph_definition_is_a_static_argument_although_lists_were_given():
    layer = make(OURS, axis=[-1], axis_name="d", axis_groups=[[0, 1]])
    run = jax.jit(
        lambda graph, state, x: nnx.merge(graph, state)(x, True), static_argnums=0
    )
    x = normal((8, 3))
    assert_close(run(*nnx.split(layer), x), run(*nnx.split(make(FLAX)), x))


@nnx.jit
def call(layer, x):
    return layer(x)


def test_split_and_merge_keep_the_layer():
    layer, x = make(OURS, debias=True, activation="relu"), normal((8, 3))
    call(layer, x)
    copy = nnx.merge(*nnx.split(layer), copy=True)
    assert_close((call(copy, x), stats(copy)), (call(layer, x), stats(layer)), 0)


def test_a_clone_has_statistics_of_its_own():
    layer, x = make(OURS), normal((8, 3))
    before = stats(layer)
    call(nnx.clone(layer), x)
    assert_close(stats(layer), before, 0)


def test_remat_updates_the_statistics_once_and_keeps_the_gradients():
    net = Net(OURS, nnx.Rngs(0))

    def loss(net, x):
        return jnp.sum(jnp.square(nnx.remat(lambda net, x: net(x))(net, x)))

    value, gradients = nnx.jit(nnx.value_and_grad(loss))(net, X)
    assert_close((value, nnx.to_pure_dict(gradients), stats(net)), two_steps()[0])


def layers(kind, number):
    @nnx.split_rngs(splits=number)
    @nnx.vmap
    def build(rngs):
        return kind(3, rngs=rngs)

    return build(nnx.Rngs(0))


def pick(tree, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


def test_vmap_over_layers_equals_each_layer_alone_in_every_call():
    many, alone = layers(OURS, 4), [make(OURS) for _ in range(4)]
    x = normal((4, 8, 3))
    run = nnx.jit(nnx.vmap(lambda layer, x: layer(x)))
    for _ in range(2):
        got = pick(run(many, x), slice(None))
        want = [call(layer, x[i]) for i, layer in enumerate(alone)]
    for i in range(4):
        assert_close((got[i], pick(stats(many), i)), (want[i], stats(alone[i])))


def test_vmap_with_shared_statistics_equals_the_whole_batch():
    layer, whole, x = make(OURS, axis_name="d"), make(FLAX), normal((4, 8, 3))
    run = nnx.jit(nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0), axis_name="d"))
    for _ in range(2):
        got, want = run(layer, x), call(whole, x)
    assert_close((got, stats(layer)), (want, stats(whole)))


def test_scan_over_layers_equals_a_loop():
    stack, alone, x = layers(OURS, 3), [make(OURS) for _ in range(3)], normal((8, 3))

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return layer(jnp.sin(3 * x))

    @nnx.jit
    def loop(x, alone):
        for layer in alone:
            x = layer(jnp.sin(3 * x))
        return x

    assert_close(run(x, stack), loop(x, alone))
    for i, layer in enumerate(alone):
        assert_close(pick(stats(stack), i), stats(layer))


def test_scan_over_time_carries_the_running_statistics():
    layer, loop = make(OURS, debias=True), make(OURS, debias=True)
    batches = normal((5, 8, 3))

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(layer, x):
        return layer, layer(x)

    _, got = run(layer, batches)
    want = np.stack([call(loop, x) for x in batches])
    assert_close((got, stats(layer)), (want, stats(loop)))


def test_a_change_of_mode_under_jit_is_seen():
    layer, x = make(OURS), normal((8, 3)) + 2
    call(layer, x)
    layer.eval()
    before = stats(layer)
    got = call(layer, x)
    graph, state = nnx.split(layer)
    want = jax.jit(lambda state: nnx.merge(graph, state)(x, True))(state)
    assert_close((got, stats(layer)), (want, before))


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

FACTS = {
    "plain": {},
    "masked": {},
    "groups": {"axis_groups": GROUPS},
}


def collect(gradients, results):
    """For each fact what the layer gives: values, statistics, gradients."""
    (params, x), (y, new) = jax.device_get((gradients, results))
    params = {k: nnx.to_pure_dict(v) for k, v in params.items()}
    return {k: (y[k], new[k], params[k], x[k]) for k in new}


def of_layer(parts, params, x, mask=None):
    graph, _, rest = parts
    layer = nnx.merge(graph, params, rest, copy=True)
    return layer(x, mask=mask), stats(layer)


def split(kind, **options):
    return nnx.split(make(kind, **options), nnx.Param, ...)


@functools.cache
def over_devices(mode):
    """A batch over `DEVICES`: all facts about shared statistics, from one program."""
    x, mask = sharded()
    layers = {k: split(OURS, axis_name="d", **options) for k, options in FACTS.items()}

    def lane(params, batch):
        xs, mask = batch
        masks = dict.fromkeys(layers) | {"masked": mask}
        out = {k: of_layer(layers[k], params[k], xs[k], masks[k]) for k in layers}
        # Groups have statistics of their own, which no device holds for all.
        new = {k: out[k][1] for k in ("plain", "masked")}
        return {k: y for k, (y, _) in out.items()}, new

    def run(params, xs):
        return MODES[mode](lane)(params, (xs, mask))

    @jax.jit
    def program(params, x):
        valid = dict.fromkeys(layers, True) | {"masked": mask}
        return differentiate(run, params, dict.fromkeys(layers, x), valid)

    params = {k: params for k, (_, params, _) in layers.items()}
    gradients, (y, new) = program(params, x)
    return collect(gradients, (y, new)), jax.device_get(y)


@functools.cache
def one_device():
    """What flax gives for the whole batch, its valid rows, and each of the groups."""
    x, mask = sharded()
    masks = {"plain": None, "masked": mask}
    layer = split(FLAX)

    @jax.jit
    def run(params):
        def whole(params, xs):
            out = {k: of_layer(layer, params[k], xs[k], masks[k]) for k in masks}
            return tuple({k: v[i] for k, v in out.items()} for i in range(2))

        groups = [of_layer(layer, params, x[list(group)])[0] for group in GROUPS]
        both, xs = (dict.fromkeys(masks, v) for v in (params, x))
        valid = {"plain": True, "masked": mask}
        return *differentiate(whole, both, xs, valid), groups

    gradients, found, groups = run(layer[1])
    return collect(gradients, found), jax.device_get(groups)


# The quick suite has one mode here, another one for linen, and most for the core.
QUICK_MODES = but_slow(MODES, ("vmap", "shard_map-vma=True", "pmap"))


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_shared_statistics_equal_one_device_in_values_state_and_gradients(mode):
    assert_close(over_devices(mode)[0]["plain"], one_device()[0]["plain"])


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_flax_defect_d5_masked_sync_equals_one_device_with_the_valid_rows(mode):
    assert_close(over_devices(mode)[0]["masked"], one_device()[0]["masked"])


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_flax_defect_d8_groups_share_statistics_in_every_mode(mode):
    got = over_devices(mode)[1]["groups"]
    for group, want in zip(GROUPS, one_device()[1], strict=True):
        assert_close(got[list(group)], want)


def test_both_names_of_the_groups_give_the_same_program():
    x, _ = sharded()

    def program(**options):
        parts = split(OURS, axis_name="d", **options)
        lane = functools.partial(of_layer, parts, parts[1])
        return str(jax.make_jaxpr(jax.vmap(lane, axis_name="d"))(x))

    want = program(axis_groups=GROUPS)
    assert program(axis_index_groups=GROUPS) == want != program()


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_of_a_module_updates_it(check_vma):
    layer, whole, x = make(OURS, axis_name="d"), make(FLAX), normal((DEVICES * 2, 3))
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    data, same = jax.P("d"), nnx.StateSharding({...: jax.P()})
    run = nnx.jit(
        nnx.shard_map(
            lambda layer, x: layer(x),
            mesh=mesh,
            in_specs=(same, data),
            out_specs=data,
            check_vma=check_vma,
        )
    )
    got, want = run(layer, x), call(whole, x)
    assert_close(
        jax.device_get((got, stats(layer))), jax.device_get((want, stats(whole)))
    )
