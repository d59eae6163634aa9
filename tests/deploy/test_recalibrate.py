"""Recalibration gives the statistics of one pass over all data."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from sweeps import but_slow

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn.deploy import linen_model, nnx_model, recalibrate


def collect(_, batch):
    x, where = batch
    return jaxbn.moments(x, where=where)


def data(seed, rows=96, channels=3, shift=3.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 2, (rows, channels)) * [1, 2, 3]
    return x.astype(np.float32), rng.random((rows, 1)) < 0.7


def expected(x, where):
    x = x[where[:, 0]].astype(np.float64)
    return x.mean(0), x.var(0)


def assert_equals_one_pass(state, x, where):
    mean, var = expected(x, where)
    std = np.sqrt(var)
    np.testing.assert_allclose(state.mean / std, mean / std, atol=1e-6)
    # A block of 32 rows loses up to 2^-24 times their number, 2e-6.
    np.testing.assert_allclose(state.var / var, 1, atol=3e-6)


def splits(parts):
    """Sizes of three kinds only: every other size or number is another program."""
    return st.lists(st.sampled_from([1, 13, 32]), min_size=parts, max_size=parts)


@given(seed=st.integers(0, 99), sizes=st.sampled_from([0, 4]).flatmap(splits))
@settings(max_examples=6)
def test_any_split_of_masked_shuffled_data_equals_one_pass(seed, sizes):
    sizes = [*sizes, 32]  # Enough valid rows.
    x, where = data(seed, rows=sum(sizes))
    order = np.random.default_rng(seed).permutation(len(x))
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(np.split(x[order], cuts), np.split(where[order], cuts), strict=True)
    state = recalibrate(collect, jaxbn.init_state(3), list(parts))
    assert_equals_one_pass(state, x, where)


def test_more_batches_than_are_kept_pending():
    x, where = data(1, rows=400)
    parts = list(zip(x.reshape(200, 2, 3), where.reshape(200, 2, 1), strict=True))
    assert_equals_one_pass(recalibrate(collect, jaxbn.init_state(3), parts), x, where)


def test_scan_under_shard_map_equals_one_pass_with_empty_devices():
    x, where = data(2, rows=8 * 5 * 4)
    where[:20] = False
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def local(x, where):
        batches = (x.reshape(5, -1, 3), where.reshape(5, -1, 1))
        state = jaxbn.init_state(3)
        return recalibrate(collect, state, batches, scan=True, axis_name="data")

    spec = PartitionSpec("data")
    run = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    assert_equals_one_pass(jax.jit(run)(x, where), x, where)


def start(net, x):
    """Variables as after `init`, without the program that draws them."""
    rng = np.random.default_rng(0)
    ones = {"var", "scale"}

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ones, leaf.dtype)

    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(fill, shapes)


class Net(nn.Module):
    """Dense and batch normalization, twice, with the layer of choice."""

    layer: type

    @nn.compact
    def __call__(self, x, *, train=False):
        for features in (4, 4):
            x = nn.Dense(features)(x)
            x = nn.relu(self.layer(use_running_average=not train)(x))
        return x


@pytest.mark.parametrize("layer", [nn.BatchNorm, jaxbn.linen.BatchNorm])
def test_linen_model_equals_one_pass_in_every_layer(layer):
    x, _ = data(3)
    net = Net(layer)
    variables = start(net, x)
    model = linen_model(net, variables)
    states = recalibrate(model.collect, model.states, np.split(x, 8), passes=2)
    got = model.replace(states)["batch_stats"]
    run = jax.jit(lambda new, x: net.apply(new, x, capture_intermediates=True))
    _, seen = run(model.replace(states), x)
    for name in ("BatchNorm_0", "BatchNorm_1"):
        number = name[-1]
        before = seen["intermediates"][f"Dense_{number}"]["__call__"][0]
        want = np.asarray(before, np.float64)
        np.testing.assert_allclose(got[name]["mean"], want.mean(0), atol=3e-6)
        np.testing.assert_allclose(got[name]["var"], want.var(0), rtol=3e-6)


def test_linen_model_in_training_leaves_parameters_and_tree_alone():
    x, _ = data(4)
    net = Net(nn.BatchNorm)
    variables = start(net, x)
    model = linen_model(net, variables, call=lambda m, batch: m(batch, train=True))
    new = model.replace(recalibrate(model.collect, model.states, [x]))
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, new["params"], variables["params"])
    train = jax.jit(lambda v: net.apply(v, x, train=True, mutable=["batch_stats"]))
    _, after = train(variables)
    mean = after["batch_stats"]["BatchNorm_1"]["mean"]
    np.testing.assert_allclose(
        0.01 * new["batch_stats"]["BatchNorm_1"]["mean"], mean, rtol=1e-4
    )


def test_a_layer_called_twice_counts_both_calls():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=True)
            return norm(x), norm(x + 2)

    x = np.zeros((4, 3), np.float32)
    net = Twice()
    model = linen_model(net, start(net, x))
    (state,) = recalibrate(model.collect, model.states, [x]).values()
    np.testing.assert_allclose(np.stack([state.mean, state.var]), np.ones((2, 3)))


class Block(nn.Module):
    """Dense and batch normalization, in the form that `nn.scan` takes."""

    @nn.compact
    def __call__(self, x, _):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)), None


LIFTED = {"params": 0, "batch_stats": 0}


def test_layers_in_scan_and_remat():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs = {"params": True}
            block = nn.scan(
                nn.remat(Block), variable_axes=LIFTED, split_rngs=rngs, length=2
            )
            return block(name="layers")(x, None)[0]

    x, _ = data(6)
    variables = start(Deep(), x)
    model = linen_model(Deep(), variables)
    (state,) = recalibrate(model.collect, model.states, [x], passes=2).values()
    state = jax.tree.map(np.asarray, state)
    dense = np.asarray(variables["params"]["layers"]["Dense_0"]["kernel"], np.float64)
    want = np.asarray(x, np.float64) @ dense[0]
    np.testing.assert_allclose(state.mean[0], want.mean(0), rtol=1e-5)
    assert state.mean.shape == (2, 3)
    new = model.replace({"layers/BatchNorm_0": state})
    assert jax.tree.structure(new) == jax.tree.structure(variables)


def test_layers_in_vmap():
    class Side(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs = {"params": True}
            block = nn.vmap(Block, variable_axes=LIFTED, split_rngs=rngs, in_axes=1)
            return block(name="layers")(x, x)[0]

    x = np.stack([data(6)[0], data(7)[0]], axis=1)
    variables = start(Side(), x)
    model = linen_model(Side(), variables)
    (state,) = recalibrate(model.collect, model.states, [x]).values()
    kernels = np.asarray(variables["params"]["layers"]["Dense_0"]["kernel"])
    state = jax.tree.map(np.asarray, state)
    for i in range(2):
        want = np.asarray(x[:, i], np.float64) @ np.asarray(kernels[i], np.float64)
        np.testing.assert_allclose(state.mean[i], want.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.var[i], want.var(0), rtol=1e-5)


class Shared(nn.Module):
    """One layer for the members of two `vmap` axes, as replicas of a batch."""

    norm = nn.BatchNorm

    @nn.compact
    def __call__(self, x):
        over = {"params": None, "batch_stats": None}
        apart = {"params": False}
        inner = nn.vmap(self.norm, variable_axes=over, split_rngs=apart, axis_name="i")
        both = nn.vmap(inner, variable_axes=over, split_rngs=apart, axis_name="d")
        return both(False, axis_name=("d", "i"), name="norm")(x)


class SharedOurs(Shared):
    norm = jaxbn.linen.BatchNorm


class NnxShared(nnx.Module):
    def __init__(self, norm):
        self.norm = norm(3, use_running_average=True, rngs=nnx.Rngs(0))

    def __call__(self, x):
        def call(norm, x):
            return norm(x)

        inner = nnx.vmap(call, in_axes=(None, 0))
        return nnx.vmap(inner, in_axes=(None, 0))(self.norm, x)


@pytest.mark.parametrize(
    "layer",
    but_slow(
        [Shared, SharedOurs, nnx.BatchNorm, jaxbn.nnx.BatchNorm],
        [Shared, nnx.BatchNorm, jaxbn.nnx.BatchNorm],
    ),
)
def test_what_members_of_a_vmap_see_of_a_shared_layer_is_merged(layer):
    x, _ = data(8)
    parts = x.reshape(2, 3, 16, 3)
    if issubclass(layer, nn.Module):
        model = linen_model(layer(), start(layer(), parts))
    else:
        model = nnx_model(NnxShared(layer))
    (state,) = recalibrate(model.collect, model.states, [parts]).values()
    assert_equals_one_pass(state, x, np.ones((96, 1), bool))
    (seen,) = model.collect(model.states, parts).values()
    np.testing.assert_array_equal(seen.count, 96)


def test_a_layer_that_is_not_called_is_named():
    net = Net(nn.BatchNorm)
    x, _ = data(3)
    variables = start(net, x)
    stats = {**variables["batch_stats"], "other": {"mean": x[0], "var": x[0]}}
    model = linen_model(net, {**variables, "batch_stats": stats})
    with pytest.raises(ValueError, match=r"`call` must call every.*\['other'\]"):
        jax.eval_shape(model.collect, model.states, x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(self.layers[0](x)))


@pytest.mark.parametrize("training", [True, False])
def test_nnx_model_equals_one_pass_and_stays_as_it_was(training):
    x, _ = data(5)
    net = NnxNet(nnx.Rngs(0))
    net.train() if training else net.eval()
    model = nnx_model(net)
    new = model.replace(recalibrate(model.collect, model.states, np.split(x, 4)))
    want = np.asarray(nnx.jit(lambda layer, x: layer(x))(net.layers[0], x), np.float64)
    np.testing.assert_allclose(new.norm.mean[...], want.mean(0), atol=3e-6)
    np.testing.assert_allclose(new.norm.var[...], want.var(0), rtol=3e-6)
    np.testing.assert_array_equal(net.norm.mean[...], np.zeros(4))
    assert type(net.norm) is nnx.BatchNorm and type(new.norm) is nnx.BatchNorm


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


class NnxDeep(nnx.Module):
    """Two blocks in `nnx.scan`; `axes` are those of its variables."""

    def __init__(self, axes):
        split = nnx.split_rngs(splits=2)
        self.blocks = split(nnx.vmap(NnxBlock))(nnx.Rngs(0))
        self.axes = axes

    def __call__(self, x):
        def step(block, x):
            return block(x)

        axes = (self.axes, nnx.Carry)
        return nnx.scan(step, in_axes=axes, out_axes=nnx.Carry)(self.blocks, x)


BOTH = nnx.StateAxes({(nnx.Param, nnx.BatchStat): 0, ...: None})


@pytest.mark.parametrize("axes", [0, BOTH], ids=["plain", "by kind"])
def test_nnx_layers_in_scan(axes):
    x, _ = data(6)
    net = NnxDeep(axes)
    model = nnx_model(net)
    (state,) = recalibrate(model.collect, model.states, [x], passes=2).values()
    kernel, bias = (
        np.asarray(getattr(net.blocks.dense, k)[...]) for k in ("kernel", "bias")
    )
    state = jax.tree.map(np.asarray, state)
    want = np.asarray(x @ kernel[0] + bias[0], np.float64)
    np.testing.assert_allclose(state.mean[0], want.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.var[0], want.var(0), rtol=1e-5)
    y = (want - want.mean(0)) / np.sqrt(want.var(0) + 1e-5)
    want = y @ kernel[1].astype(np.float64)
    np.testing.assert_allclose(state.mean[1], want.mean(0), atol=1e-5)
    np.testing.assert_allclose(state.var[1], want.var(0), rtol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
def test_nnx_layers_that_record_nothing_are_named(compiled):
    x, _ = data(6)
    model = nnx_model(NnxNet(nnx.Rngs(0)), call=lambda net, x: net.layers[0](x))
    collect = jax.jit(model.collect) if compiled else model.collect
    with pytest.raises(ValueError, match=r"`call` must call every.*\['norm'\]"):
        collect(model.states, x)


def test_nnx_scan_that_drops_the_statistics_is_refused():
    x, _ = data(6)
    net = NnxDeep(nnx.StateAxes({nnx.Param: 0, ...: None}))
    norm = net.blocks.norm  # Both blocks read the same statistics.
    norm.mean, norm.var = nnx.BatchStat(jnp.zeros(3)), nnx.BatchStat(jnp.ones(3))
    model = nnx_model(net)
    with pytest.raises(ValueError, match=r"`call` must call every.*'blocks/norm'"):
        recalibrate(model.collect, model.states, [x])


KINDS = ("uint8", "int32", "bool")
NORMS = {
    "linen of flax": nn.BatchNorm,
    "linen": jaxbn.linen.BatchNorm,
    "nnx of flax": nnx.BatchNorm,
    "nnx": jaxbn.nnx.BatchNorm,
}
INTEGERS = np.random.default_rng(0).integers(0, 255, (16, 3)) % 7


@functools.cache
def recorded_integers():
    """The states of all layers, in both modes and for all types, from one program."""
    models = {}
    for training in (True, False):
        use = {"use_running_average": not training}
        for name, norm in NORMS.items():
            if "linen" in name:
                model = linen_model(norm(**use), start(norm(**use), np.ones((1, 3))))
            else:
                model = nnx_model(norm(3, rngs=nnx.Rngs(0), **use))
            models |= {f"{name}, {kind}, {training = }": model for kind in KINDS}

    def collect(states, batch):
        return {
            name: model.collect(states[name], batch[name.split(", ")[1]])
            for name, model in models.items()
        }

    states = {name: model.states for name, model in models.items()}
    batch = {kind: INTEGERS.astype(kind) for kind in KINDS}
    return recalibrate(collect, states, [batch])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_integers_are_recorded_as_the_layers_take_them(kind, training):
    want = INTEGERS.astype(kind).astype(np.float64)
    for norm in NORMS:
        name = f"{norm}, {kind}, {training = }"
        (state,) = recorded_integers()[name].values()
        for got, exact in ((state.mean, want.mean(0)), (state.var, want.var(0))):
            np.testing.assert_allclose(got, exact, rtol=1e-5, err_msg=name)


def test_messages_name_the_argument():
    state = jaxbn.init_state(3)
    with pytest.raises(ValueError, match="`passes` must be at least 1, got 0"):
        recalibrate(collect, state, [], passes=0)
    with pytest.raises(ValueError, match="`batches` must contain a batch"):
        recalibrate(collect, state, iter(()))
    with pytest.raises(ValueError, match=r"`collect\(...\)` must have the structure"):
        recalibrate(collect, {"norm": state}, [data(0)])
    with pytest.raises(ValueError, match="`variables` must contain running"):
        linen_model(nn.Dense(1), {"params": {}})
