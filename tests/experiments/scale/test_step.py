"""A training step is the same in every layout; one that is not finite only counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from flax import linen as nn

import jaxbn.linen
from experiments.common.errors import UserError
from experiments.nets import resnet
from experiments.scale.config import CONFIGS, Data, Devices, Model, ScaleConfig
from experiments.scale.layout import make_layout
from experiments.scale.network import Network, Variables
from experiments.scale.step import Sums, evaluate
from experiments.scale.train import make_run

BATCH, STEPS = 16, 20
LAYOUTS = [
    {"parallel": "jit"},
    {"parallel": "jit", "model_devices": 2},
    {"parallel": "explicit"},
    {"parallel": "shard_map"},
    {"parallel": "pmap"},
]


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """Of the ResNet the stem and a strided block, a third of the smallest one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "blocks", lambda counts: [("stage2_block1", 1, 2)])
        yield


def config_of(*, depth=8, bn_sync="global", **devices):
    base = CONFIGS["cifar10-resnet20"]
    return ScaleConfig(
        model=Model(depth=depth, bn_sync=bn_sync),
        data=Data(image_size=8),
        optimizer=dataclasses.replace(base.optimizer, batch_size=BATCH, steps=STEPS),
        devices=Devices(**devices),
        stop_after_nonfinite=3,
    )


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        labels = rng.integers(0, 10, BATCH)
        images = rng.normal(size=(BATCH, 8, 8, 3)) + labels[:, None, None, None] / 3
        yield {
            "image": images.astype(np.float32),
            "label": labels.astype(np.int32),
        }


def tiny_network(*, axis_name, ghost):
    """One convolution with its normalization: compiles in a second."""
    kind, options = jaxbn.linen.BatchNorm, {"debias": True}
    if ghost is not None:
        kind, options = jaxbn.linen.GhostBatchNorm, {"ghost_batch_size": ghost}

    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False, mask=None):
            x = nn.Conv(16, (3, 3), strides=2, use_bias=False)(x)
            norm = kind(axis_name=axis_name, activation="relu", **options)
            return nn.Dense(10)(norm(x, not train, mask=mask).mean((1, 2)))

    module = Tiny()

    def init(key):
        return Variables(**module.init(key, jnp.zeros((1, 8, 8, 3))))

    def train(variables, images, mask):
        changing = {"train": True, "mask": mask, "mutable": "batch_stats"}
        logits, new = module.apply(variables._asdict(), images, **changing)
        return logits, new["batch_stats"]

    def infer(variables, images):
        return module.apply(variables._asdict(), images)

    return Network(module, init, train, infer)


def run_of(*, small=True, **options):
    run = make_run(config_of(**options))
    if not small:
        return run
    network = tiny_network(axis_name=run.layout.axis_name, ghost=run.group)
    return run._replace(step=dataclasses.replace(run.step, network=network))


def trained(**options):
    run = run_of(**options)
    state = run.layout.init(run.step.init, 0)
    step = run.layout.spread(run.step, state)
    losses = []
    for batch in batches():
        state, metrics = step(state, run.layout.put_batch(batch))
        losses.append(float(metrics.loss))
    return losses, jax.device_get(state)


@functools.cache
def alone(bn_sync, *, small=True):
    """The same program without a mesh or a collective, and the state it begins with."""
    run = run_of(bn_sync=bn_sync, small=small)
    step = jax.jit(dataclasses.replace(run.step, axis_name=None))
    return step, jax.jit(run.step.init)(jax.random.key(0))


@functools.cache
def on_one_device(bn_sync, *, small=True):
    step, state = alone(bn_sync, small=small)
    losses = []
    for batch in batches():
        state, metrics = step(state, jax.device_put(batch, jax.devices()[0]))
        losses.append(float(metrics.loss))
    return losses, jax.device_get(state)


SLOW = pytest.mark.slow
QUICK = ({"parallel": "jit", "model_devices": 2}, {"parallel": "shard_map"})


CASES = [
    pytest.param(small, bn_sync, layout, marks=[] if quick else [SLOW])
    for small in (True, False)
    for bn_sync in ("global", "ghost:4")
    for layout in LAYOUTS
    for quick in [small and bn_sync == "global" and layout in QUICK]
]


@pytest.mark.parametrize(("small", "bn_sync", "devices"), CASES, ids=str)
def test_twenty_steps_are_those_of_one_device(devices, bn_sync, small):
    losses, state = trained(bn_sync=bn_sync, small=small, **devices)
    want_losses, want = on_one_device(bn_sync, small=small)
    assert want_losses[-1] < want_losses[0]
    np.testing.assert_allclose(losses, want_losses, rtol=1e-4)
    for name in ("params", "batch_stats"):
        got, expected = getattr(state, name), getattr(want, name)
        assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


def test_statistics_of_a_device_are_not_those_of_the_batch():
    assert on_one_device("ghost:4")[0] != on_one_device("global")[0]


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    step, state = alone("global")
    good = next(batches())
    bad = {**good, "image": good["image"] * np.float32(np.nan)}
    state, _ = step(state, good)
    after, metrics = step(state, bad)
    for name in ("params", "batch_stats", "opt_state"):
        assert_trees_all_equal(getattr(after, name), getattr(state, name))
    assert (after.step, after.skipped, after.in_a_row) == (2, 1, 1)
    assert not np.isfinite(metrics.gradient_norm)
    again, _ = step(after, good)
    assert (again.skipped, again.in_a_row) == (1, 0)
    assert_trees_all_equal(again.params, step(state, good)[0].params)


def test_after_too_many_in_a_row_nothing_changes_any_more():
    step, state = alone("global")
    good = next(batches())
    bad = {**good, "image": np.full_like(good["image"], np.inf)}
    for _ in range(3):
        state, _ = step(state, bad)
    assert (state.step, state.skipped, state.in_a_row) == (3, 3, 3)
    after, _ = step(state, good)
    assert_trees_all_equal(after, state)


def test_evaluation_counts_what_the_mask_shows():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [np.nan, np.nan]])
    batch = {
        "label": jnp.array([0, 0, 0]),
        "mask": jnp.array([True, True, False]),
    }
    sums = evaluate(logits, batch)
    want = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))
    assert_trees_all_close(sums, Sums(jnp.float32(want), 1, 2), rtol=1e-6)


def test_messages_for_devices():
    with pytest.raises(UserError, match="`--batch-size` must be a multiple of 8"):
        make_layout(Devices()).rows_of_a_device(12)
    with pytest.raises(UserError, match="`--model-devices` must divide"):
        make_layout(Devices(model_devices=3))
