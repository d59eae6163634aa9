"""The networks have the sizes of the papers and are the same in linen and nnx."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbn.deploy
from experiments.common.errors import UserError
from experiments.nets import resnet
from experiments.scale import config, network

# Compiles faster; how fast it runs does not matter here.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
SLOW = pytest.mark.slow
DATA = config.Data(image_size=8)
TINY = config.Model(depth=8, zero_init_last_scale=False)


def make(model=TINY, data=DATA, *, batch_size=16, data_devices=1, axis_name=None):
    return network.make_network(
        model,
        data,
        batch_size=batch_size,
        data_devices=data_devices,
        axis_name=axis_name,
    )


@functools.cache
def started():
    """New weights, and running statistics that are not the initial ones."""
    new = quick(make().init)(jax.random.key(0))
    generator = np.random.default_rng(1)
    stats = jax.tree.map_with_path(
        lambda path, leaf: (
            leaf
            if path[-1].key == "count"
            else jnp.asarray(leaf + generator.uniform(0.1, 0.3, leaf.shape), leaf.dtype)
        ),
        new.batch_stats,
    )
    return new._replace(batch_stats=stats)


@functools.cache
def of_flax():
    """The same for layers of flax, which keep no count and stand one level deeper."""

    def deeper(tree):
        return {
            name: {"norm": {k: v for k, v in values.items() if k != "count"}}
            if "norm" in name
            else deeper(values)
            if isinstance(values, dict)
            else values
            for name, values in tree.items()
        }

    return started()._make(map(deeper, started()))


@functools.cache
def computed(norm, api):
    """Logits and statistics of a training pass with a mask, and logits to deploy."""
    net = make(replace(TINY, api=api, norm=norm))

    def both(variables, x, mask):
        return *net.train(variables, x, mask), net.infer(variables, x)

    variables = of_flax() if norm == "flax" else started()
    return quick(both)(variables, images(), MASK)


MASK = np.arange(16) < 11


@functools.cache
def images(batch=16):
    shape = (batch, DATA.image_size, DATA.image_size, DATA.channels)
    return np.random.default_rng(0).standard_normal(shape, np.float32) + 1


def shapes(variables):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


@pytest.mark.parametrize(
    ("depth", "millions"),
    [
        (20, 0.27),
        pytest.param(56, 0.85, marks=SLOW),
        pytest.param(110, 1.73, marks=SLOW),
        pytest.param(50, 25.56, marks=SLOW),
    ],
)
def test_sizes_are_those_of_the_papers_and_of_both_apis(depth, millions):
    data = replace(DATA, classes=1000, image_size=224) if depth == 50 else DATA
    linen = jax.eval_shape(make(config.Model(depth), data).init, jax.random.key(0))
    # The module is made of shapes as well; `init` makes another one in the same way.
    other = make(config.Model(depth, api="nnx"), data).module
    params, stats = nnx.state(other, nnx.Param), nnx.state(other, nnx.BatchStat)
    assert shapes(linen) == shapes(
        network.Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(stats))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(linen.params))
    assert round(count / 1e6, 2) == millions
    assert {leaf.dtype for leaf in jax.tree.leaves(linen)} == {jnp.dtype("float32")}


@SLOW
def test_resnet_50_is_v1_5_and_the_same_function_in_both_apis():
    # Of two blocks in all, so that it compiles soon: a plain and a strided one.
    data = replace(DATA, image_size=32, classes=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "STAGES", (1, 1))
        model = replace(TINY, depth=50)
        linen, other = (make(replace(model, api=a), data) for a in ("linen", "nnx"))
        start = linen.init(jax.random.key(0))
        block = start.params["stage2_block1"]
        assert block["conv2"]["kernel"].shape == (3, 3, 128, 128)
        x = np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32)
        _, seen = linen.module.apply(
            start._asdict(), x, capture_intermediates=True, mutable="intermediates"
        )
        inner = seen["intermediates"]["stage2_block1"]
        assert inner["conv1"]["__call__"][0].shape == (4, 8, 8, 128)
        assert inner["conv2"]["__call__"][0].shape == (4, 4, 4, 128)
        y, z = (quick(n.infer)(start, x) for n in (linen, other))
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)


def test_what_is_initialized_has_the_same_shapes_in_both_apis():
    other = make(replace(TINY, api="nnx"))
    made = jax.eval_shape(other.init, jax.random.key(0))
    assert shapes(made) == shapes(started())


@pytest.mark.parametrize("norm", ["jaxbn", pytest.param("flax", marks=SLOW)])
def test_linen_and_nnx_agree_in_logits_and_statistics(norm):
    (y, stats, z), (y2, stats2, z2) = (computed(norm, api) for api in ("linen", "nnx"))
    assert y.dtype == y2.dtype == jnp.float32
    np.testing.assert_allclose(y, y2, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, stats2
    )
    np.testing.assert_allclose(z, z2, rtol=1e-5, atol=1e-5)


def test_both_libraries_of_layers_give_the_same_logits():
    ours, theirs = (computed(norm, "linen") for norm in ("jaxbn", "flax"))
    for got, want in ((ours[0], theirs[0]), (ours[2], theirs[2])):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("api", ["linen", pytest.param("nnx", marks=SLOW)])
def test_bfloat16_keeps_float32_variables_and_logits(api):
    net = make(replace(TINY, api=api, dtype="bfloat16"))
    y, stats = quick(net.train)(started(), images(), MASK)
    assert y.dtype == jnp.float32
    assert shapes(stats) == shapes(started().batch_stats)
    exact = computed("jaxbn", "linen")[0]
    error = np.abs(y - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max() + 1e-3


@SLOW
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_initial_kernels_are_he_normal_and_the_last_scales_zero(api):
    net = make(replace(TINY, api=api, zero_init_last_scale=True))
    params = net.init(jax.random.key(3)).params
    block = params["stage3_block1"]
    assert not block["norm2"]["scale"].any() and (block["norm1"]["scale"] == 1).all()
    kernel = block["conv1"]["kernel"]
    std = np.sqrt(2 / (3 * 3 * 64))  # of 64 outputs
    np.testing.assert_allclose(kernel.std(), std, rtol=5 / np.sqrt(2 * kernel.size))
    others = net.init(jax.random.key(4)).params["stage3_block1"]["conv1"]["kernel"]
    assert (kernel != others).any()


def test_deployment_finds_its_way_in_both_modules():
    start, x = started(), images()
    model = jaxbn.deploy.linen_model(make().module, start._asdict())
    other = make(replace(TINY, api="nnx"))
    loaded = network.with_variables(other, start)
    assert model.states.keys() == jaxbn.deploy.nnx_model(loaded).states.keys()
    folded, report = jaxbn.deploy.fold_nnx(loaded, jnp.asarray(x))
    assert not report.kept and len(report.folded) == 7
    want = computed("jaxbn", "linen")[2]
    np.testing.assert_allclose(nnx.jit(folded)(x), want, rtol=1e-4, atol=1e-5)


def losses(net, axis_name=None):
    """Loss, gradients and new statistics of a step on part of a batch."""

    def step(variables, x, labels):
        def loss(params):
            logits, stats = net.train(variables._replace(params=params), x, None)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, 1)
            value = -chosen.mean()
            value = value if axis_name is None else jax.lax.pmean(value, axis_name)
            return value, stats

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(
            variables.params
        )
        return value, gradient, stats

    return step


def by_jit(kind, variables, x, labels, bn_sync, api):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    net = make(replace(TINY, bn_sync=bn_sync, api=api), data_devices=8)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        x, labels = jax.device_put((x, labels), spread)
        return quick(losses(net))(variables, x, labels)


def by_shard_map(variables, x, labels, bn_sync, api):
    chosen = replace(TINY, bn_sync=bn_sync, api=api)
    step = losses(make(chosen, data_devices=8, axis_name="data"), "data")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, part = PartitionSpec(), PartitionSpec("data")
    specs = {"mesh": mesh, "in_specs": (whole, part, part), "out_specs": whole}
    return quick(jax.shard_map(step, **specs))(variables, x, labels)


WAYS = {
    "jit": functools.partial(by_jit, AxisType.Auto),
    "explicit": functools.partial(by_jit, AxisType.Explicit),
    "shard_map": by_shard_map,
}


@SLOW
@pytest.mark.parametrize(
    ("way", "bn_sync", "api"),
    [
        ("jit", "groups:4", "linen"),
        ("explicit", "global", "nnx"),
        ("explicit", "device", "linen"),
        ("shard_map", "groups:4", "nnx"),
        ("shard_map", "global", "linen"),
    ],
)
def test_a_step_on_eight_devices_is_that_of_one(way, bn_sync, api):
    labels = np.arange(16)[:, None] % 10
    ghost = {"global": "global", "groups:4": "ghost:8", "device": "ghost:2"}[bn_sync]
    alone = quick(losses(make(replace(TINY, bn_sync=ghost))))
    want = alone(started(), images(), labels)
    got = WAYS[way](started(), images(), labels, bn_sync, api)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want
    )


@pytest.mark.parametrize(
    ("bn_sync", "size"),
    [
        ("global", None),
        ("device", 16),
        ("groups:2", 32),
        ("groups:8", None),
        ("ghost:4", 4),
        ("ghost:64", 64),
        ("ghost:128", None),
    ],
)
def test_the_size_of_groups(bn_sync, size):
    assert network.ghost_batch_size(bn_sync, batch_size=128, data_devices=8) == size


@pytest.mark.parametrize(
    ("bn_sync", "batch", "message"),
    [
        ("local", 128, "`--bn-sync` must be 'global', 'device', 'groups:N' or"),
        ("ghost:0", 128, "got 'ghost:0'. Pass for example groups:4"),
        ("groups:3", 128, "`--bn-sync` must divide the 8 devices, and so the batch"),
        ("ghost:5", 128, "`--bn-sync` must divide the 16 examples of a device, or"),
        ("ghost:48", 128, "got 'ghost:48'. Pass another number, or global."),
        ("device", 12, "`--batch-size` must be a multiple of the number of devices"),
    ],
)
def test_groups_that_do_not_divide_the_batch_are_refused(bn_sync, batch, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        network.ghost_batch_size(bn_sync, batch_size=batch, data_devices=8)


def test_a_network_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"`--depth` must be 50 or 6n \+ 2 .* got 21"):
        make(replace(TINY, depth=21))
    with pytest.raises(UserError, match="'global' with `--norm flax`, got 'device'"):
        make(replace(TINY, norm="flax", bn_sync="device"))
