"""jaxbn.linen.BatchNorm inside transformations, networks and meshes."""

import functools

import jax
import jax.numpy as jnp
import pytest
from drop_in import (
    DEVICES,
    GROUPS,
    KEY,
    MODES,
    assert_close,
    differentiate,
    normal,
    sharded,
)
from flax import linen as nn
from sweeps import but_slow

import jaxbn.linen

OURS, FLAX = jaxbn.linen.BatchNorm, nn.BatchNorm


@functools.partial(jax.jit, static_argnums=0)
def start(module, x):
    return module.init(KEY, x)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, x, **call):
    """The result and the collection of statistics after a call in training."""
    return module.apply(variables, x, mutable="batch_stats", **call)


@functools.partial(jax.jit, static_argnums=0)
def step(module, variables, x):
    """Loss, statistics after the step and gradients of the parameters."""

    def loss(params):
        y, changed = module.apply(
            {**variables, "params": params}, x, mutable="batch_stats"
        )
        return jnp.sum(jnp.square(y)), changed

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def pick(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


class Net(nn.Module):
    """A network around a normalization layer."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = self.norm(use_running_average=False, name="norm")(nn.Dense(5)(x))
        return nn.Dense(2)(nn.relu(x))


X = normal((16, 4))


@functools.cache
def steps():
    """A step of the network: with the layer of flax, with ours, and with `nn.remat`."""
    variables = start(Net(FLAX), X)
    nets = {"flax": Net(FLAX), "ours": Net(OURS), "remat": nn.remat(Net)(OURS)}
    return {name: step(net, variables, X) for name, net in nets.items()}


def test_a_network_with_ours_equals_the_one_with_flax():
    assert_close(steps()["ours"], steps()["flax"])


def test_remat_updates_the_statistics_once_and_keeps_the_gradients():
    assert_close(steps()["remat"], steps()["ours"])


def test_jit_of_the_module_equals_the_module():
    layer = OURS(use_running_average=False)
    variables = start(layer, X)
    got = nn.jit(OURS)(use_running_average=False)
    assert_close(
        got.apply(variables, X, mutable="batch_stats"),
        apply(layer, variables, X),
    )


@pytest.mark.parametrize("eagerly", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_groups_may_be_given_as_lists_as_in_flax(eagerly):
    module = OURS(False, axis_name="d", axis_groups=[[0, 1], [2]])
    x = normal((3, 16, 4))
    variables = start(OURS(False), X)
    lane = functools.partial(module.apply, variables, mutable="batch_stats")
    run = jax.vmap(lane, axis_name="d")
    got, _ = (run if eagerly else jax.jit(run))(x)
    want, _ = apply(OURS(False), variables, x[2])
    assert_close(got[2], want)


def test_scan_over_layers_equals_a_loop():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return OURS(use_running_average=False, name="norm")(jnp.sin(3 * x)), None

    axes, rngs = {"params": 0, "batch_stats": 0}, {"params": True}
    stack = nn.scan(Layer, axes, split_rngs=rngs, length=3)()

    @jax.jit
    def run(x):
        variables = stack.init(KEY, x, None)
        (got, _), changed = stack.apply(variables, x, None, mutable="batch_stats")
        y, loop = x, []
        for i in range(3):
            layer = pick(variables, i)
            (y, _), one = Layer().apply(layer, y, None, mutable="batch_stats")
            loop.append(one)
        return got, changed, y, loop

    got, changed, y, loop = run(X)
    for i, one in enumerate(loop):
        assert_close(pick(jax.device_get(changed), i), one)
    assert_close(got, y)


def test_scan_over_time_carries_the_running_statistics():
    module, batches = OURS(use_running_average=False, debias=True), normal((5, 16, 4))
    variables = start(module, X)

    def over_time(module):
        loop = nn.scan(
            lambda layer, carry, x: (carry, layer(x)),
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False},
        )
        return loop(module, (), batches)

    _, got = jax.jit(nn.apply(over_time, module, mutable="batch_stats"))(variables)
    want = variables
    for x in batches:
        want = {**want, **apply(module, want, x)[1]}
    assert_close(got["batch_stats"], want["batch_stats"])


def test_vmap_over_layers_equals_each_layer_alone():
    axes, rngs = {"params": 0, "batch_stats": 0}, {"params": True}
    many = nn.vmap(OURS, variable_axes=axes, split_rngs=rngs)(use_running_average=False)
    x = normal((4, 16, 4))
    variables = start(many, x)
    got = jax.device_get(apply(many, variables, x))
    for i, alone in enumerate(x):
        layer = pick(jax.device_get(variables), i)
        want = apply(OURS(use_running_average=False), layer, alone)
        assert_close(pick(got, i), want)


def test_nested_vmap_with_shared_statistics_equals_the_whole_batch():
    same = {
        "variable_axes": {"params": None, "batch_stats": None},
        "split_rngs": {"params": False},
    }
    inner = nn.vmap(OURS, **same, axis_name="inner")
    outer = nn.vmap(inner, **same, axis_name="outer")
    x = normal((2, 3, 4, 5))
    module = outer(use_running_average=False, axis_name=("outer", "inner"))
    variables = start(module, x)
    want = apply(OURS(use_running_average=False), variables, x)
    assert_close(apply(module, variables, x), want)


# --- shared statistics ---------------------------------------------------------------

FACTS = {
    "plain": {},
    "masked": {},
    "groups": {"axis_groups": GROUPS},
}


def collect(gradients, results):
    """For each fact what the layer gives: values, statistics, gradients."""
    (params, x), (y, new) = jax.device_get((gradients, results))
    return {k: (y[k], new[k], params[k], x[k]) for k in new}


def of_layer(layer, variables, params, x, mask=None):
    call = {**variables, "params": params}
    y, new = layer.apply(call, x, mutable="batch_stats", mask=mask)
    return y, new["batch_stats"]


@functools.cache
def over_devices(mode):
    """A batch over `DEVICES`: all facts about shared statistics, from one program."""
    x, mask = sharded()
    variables, _ = one_device()
    layers = {
        name: OURS(use_running_average=False, axis_name="d", **options)
        for name, options in FACTS.items()
    }

    def lane(params, batch):
        xs, mask = batch
        masks = dict.fromkeys(layers) | {"masked": mask}
        out = {
            k: of_layer(layer, variables, params[k], xs[k], masks[k])
            for k, layer in layers.items()
        }
        # Groups have statistics of their own, which no device holds for all.
        new = {k: out[k][1] for k in ("plain", "masked")}
        return {k: y for k, (y, _) in out.items()}, new

    def run(params, xs):
        return MODES[mode](lane)(params, (xs, mask))

    @jax.jit
    def program(params, x):
        valid = dict.fromkeys(layers, True) | {"masked": mask}
        params, xs = (dict.fromkeys(layers, v) for v in (params, x))
        return differentiate(run, params, xs, valid)

    gradients, (y, new) = program(variables["params"], x)
    return collect(gradients, (y, new)), jax.device_get(y)


@functools.cache
def one_device():
    """What flax gives for the whole batch, its valid rows, and each of the groups."""
    x, mask = sharded()
    layer = FLAX(use_running_average=False)

    def run(variables):
        def whole(params, xs):
            masks = {"plain": None, "masked": mask}
            out = {
                k: of_layer(layer, variables, params[k], xs[k], masks[k]) for k in masks
            }
            return tuple({k: v[i] for k, v in out.items()} for i in range(2))

        names = ("plain", "masked")
        params, xs = (dict.fromkeys(names, v) for v in (variables["params"], x))
        valid = {"plain": True, "masked": mask}
        groups = [
            of_layer(layer, variables, variables["params"], x[list(group)])[0]
            for group in GROUPS
        ]
        return *differentiate(whole, params, xs, valid), groups

    variables = start(layer, x)
    gradients, found, groups = jax.jit(run)(variables)
    return variables, (collect(gradients, found), jax.device_get(groups))


# The quick suite has one mode here, another one for nnx, and most for the core.
QUICK_MODES = but_slow(MODES, ("pmap", "shard_map-vma=True", "shard_map-vma=False"))


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_shared_statistics_equal_one_device_in_values_state_and_gradients(mode):
    assert_close(over_devices(mode)[0]["plain"], one_device()[1][0]["plain"])


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_flax_defect_d5_masked_sync_equals_one_device_with_the_valid_rows(mode):
    assert_close(over_devices(mode)[0]["masked"], one_device()[1][0]["masked"])


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_flax_defect_d8_groups_share_statistics_in_every_mode(mode):
    got = over_devices(mode)[1]["groups"]
    for group, want in zip(GROUPS, one_device()[1][1], strict=True):
        assert_close(got[list(group)], want)


def test_both_names_of_the_groups_give_the_same_program():
    x, _ = sharded()

    def program(**options):
        layer, (variables, _) = OURS(False, axis_name="d", **options), one_device()
        lane = functools.partial(of_layer, layer, variables, variables["params"])
        return str(jax.make_jaxpr(jax.vmap(lane, axis_name="d"))(x))

    want = program(axis_groups=GROUPS)
    assert program(axis_index_groups=GROUPS) == want != program()


def test_a_batch_sharded_under_jit_has_global_statistics():
    module = OURS(use_running_average=False)
    variables = start(module, X)
    mesh = jax.make_mesh((DEVICES,), ("d",))
    place = jax.NamedSharding(mesh, jax.P("d"))
    got = apply(module, variables, jax.device_put(X, place))
    assert_close(jax.device_get(got), jax.device_get(apply(module, variables, X)))
