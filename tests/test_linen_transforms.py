"""jaxbn.linen.BatchNorm inside transformations, networks and meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import (
    DEVICES,
    GROUPS,
    KEY,
    MODES,
    assert_close,
    normal,
    sharded,
)
from flax import linen as nn

import jaxbn.linen

OURS, FLAX = jaxbn.linen.BatchNorm, nn.BatchNorm


def start(module, x):
    return jax.jit(lambda x: module.init(KEY, x))(x)


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


def test_a_network_with_ours_equals_the_one_with_flax():
    x = normal((16, 4))
    variables = start(Net(FLAX), x)
    assert_close(step(Net(OURS), variables, x), step(Net(FLAX), variables, x))


def test_remat_updates_the_statistics_once_and_keeps_the_gradients():
    x = normal((16, 4))
    variables = start(Net(OURS), x)
    saving = nn.remat(Net)(OURS)
    assert_close(step(saving, variables, x), step(Net(OURS), variables, x))


def test_jit_of_the_module_equals_the_module():
    x = normal((16, 4))
    variables = start(Net(OURS), x)
    got = nn.jit(Net)(OURS).apply(variables, x, mutable="batch_stats")
    assert_close(got, Net(OURS).apply(variables, x, mutable="batch_stats"))


def test_groups_given_as_lists_may_be_used_eagerly_as_in_flax():
    module = OURS(False, axis_name="d", axis_groups=[[0, 1], [2]])
    x = normal((3, 4, 2))
    variables = OURS(False).init(KEY, x[0])
    lane = functools.partial(module.apply, variables, mutable="batch_stats")
    got, _ = jax.vmap(lane, axis_name="d")(x)
    want, _ = OURS(False).apply(variables, x[2], mutable="batch_stats")
    assert_close(got[2], want)


def test_scan_over_layers_equals_a_loop():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return OURS(use_running_average=False, name="norm")(jnp.sin(3 * x)), None

    axes, rngs = {"params": 0, "batch_stats": 0}, {"params": True}
    stack = nn.scan(Layer, axes, split_rngs=rngs, length=3)()
    y = x = normal((16, 4))
    variables = jax.jit(lambda x: stack.init(KEY, x, None))(x)
    (got, _), changed = stack.apply(variables, x, None, mutable="batch_stats")
    for i in range(3):
        layer = pick(variables, i)
        (y, _), one = Layer().apply(layer, y, None, mutable="batch_stats")
        assert_close(pick(changed, i), one)
    assert_close(got, y)


def test_scan_over_time_carries_the_running_statistics():
    module, batches = OURS(use_running_average=False, debias=True), normal((5, 8, 3))
    variables = start(module, batches[0])

    def over_time(module):
        loop = nn.scan(
            lambda layer, carry, x: (carry, layer(x)),
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False},
        )
        return loop(module, (), batches)

    _, got = nn.apply(over_time, module, mutable="batch_stats")(variables)
    want = variables
    for x in batches:
        want = {**want, **apply(module, want, x)[1]}
    assert_close(got["batch_stats"], want["batch_stats"])


def test_vmap_over_layers_equals_each_layer_alone():
    axes, rngs = {"params": 0, "batch_stats": 0}, {"params": True}
    many = nn.vmap(OURS, variable_axes=axes, split_rngs=rngs)(use_running_average=False)
    x = normal((4, 16, 3))
    variables = start(many, x)
    got = apply(many, variables, x)
    for i in range(4):
        want = apply(OURS(use_running_average=False), pick(variables, i), x[i])
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


def over_devices(mode, module, variables, x, mask=None):
    """Values, statistics and gradients of a layer whose batch is over `DEVICES`."""

    def lane(variables, batch):
        y, new = module.apply(variables, batch[0], mutable="batch_stats", mask=batch[1])
        return y, new["batch_stats"]

    def loss(params, x):
        layer = lane if mode is None else MODES[mode](lane)
        y, new = layer({**variables, "params": params}, (x, mask))
        return jnp.sum(jnp.where(valid, jnp.sin(y), 0)), (y, new)

    valid = True if mask is None else mask
    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return jax.device_get(run(variables["params"], x))


@functools.cache
def one_device(*, masked):
    x, mask = sharded()
    variables = start(FLAX(use_running_average=False), x)
    want = FLAX(use_running_average=False)
    return variables, over_devices(None, want, variables, x, mask if masked else None)


@pytest.mark.parametrize("mode", MODES)
def test_shared_statistics_equal_one_device_in_values_state_and_gradients(mode):
    variables, want = one_device(masked=False)
    module = OURS(use_running_average=False, axis_name="d")
    assert_close(over_devices(mode, module, variables, sharded()[0]), want)


@pytest.mark.parametrize("mode", MODES)
def test_flax_defect_d5_masked_sync_equals_one_device_with_the_valid_rows(mode):
    variables, want = one_device(masked=True)
    module = OURS(use_running_average=False, axis_name="d")
    assert_close(over_devices(mode, module, variables, *sharded()), want)


@pytest.mark.parametrize("argument", ["axis_groups", "axis_index_groups"])
@pytest.mark.parametrize("mode", MODES)
def test_flax_defect_d8_groups_share_statistics_in_every_mode(mode, argument):
    x, _ = sharded()
    variables, _ = one_device(masked=False)
    module = OURS(use_running_average=False, axis_name="d", **{argument: GROUPS})

    def lane(variables, x):
        return module.apply(variables, x, mutable="batch_stats")[0], ()

    got, _ = jax.jit(MODES[mode](lane))(variables, x)
    for group in map(np.asarray, GROUPS):
        want, _ = apply(FLAX(use_running_average=False), variables, x[group])
        assert_close(np.asarray(got)[group], np.asarray(want))


def test_a_batch_sharded_under_jit_has_global_statistics():
    x = normal((DEVICES * 4, 3))
    module = OURS(use_running_average=False)
    variables = start(module, x)
    mesh = jax.make_mesh((DEVICES,), ("d",))
    place = jax.NamedSharding(mesh, jax.P("d"))
    got = apply(module, variables, jax.device_put(x, place))
    assert_close(jax.device_get(got), jax.device_get(apply(module, variables, x)))
