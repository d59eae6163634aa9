"""Defects of other libraries, each by its name: here the same case is right.

D1 and D2 are of equinox, D3 and D4 of haiku, D5 and D9 of flax, D6 and D7 of flax nnx,
D8 of JAX, D10 and D11 of keras, D13 of torch, D15 of flax's ImageNet example, D16 of
serket, D17 of sbx, D18 of init2winit, D20 of timm.
"""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxbn

ROUNDING = 64 * 2.0**-24


def draw(shape, seed=0, mean=0.0, std=1.0, dtype=jnp.float32):
    values = np.random.default_rng(seed).normal(mean, std, shape)
    return jnp.asarray(values, dtype)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_defect_d1_a_debiased_variance_does_not_remember_its_start(momentum, steps):
    # equinox: v + m^n / (1 - m^n), which is v + 99 after one step
    batch = jaxbn.moments(draw((32, 3), std=2))
    state = jaxbn.init_state(3)
    for _ in range(steps):
        state = jaxbn.update(state, batch, momentum=momentum)
    want = batch.m2 / batch.count
    np.testing.assert_allclose(state.var, want, rtol=ROUNDING * np.sqrt(steps))


def test_defect_d1_evaluation_after_one_step_uses_that_batch():
    x = draw((32, 3), mean=5, std=2)
    y, state = jaxbn.batch_norm(x, jaxbn.init_state(3))
    np.testing.assert_allclose(jaxbn.batch_norm_inference(x, state), y, atol=1e-5)


def test_defect_d2_the_first_bfloat16_batch_meets_a_float32_state():
    x = draw((32, 3), mean=5, dtype=jnp.bfloat16)
    y, state = jaxbn.batch_norm(x, jaxbn.init_state(3))
    assert y.dtype == jnp.bfloat16 and state.mean.dtype == jnp.float32


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999, 0.9999])
def test_defect_d3_a_momentum_of_0_999_survives_bfloat16(momentum):
    # haiku: bfloat16(0.999) is 1, the average is 0 / 0
    batches = [draw((64, 2), seed=i, mean=i, dtype=jnp.bfloat16) for i in range(5)]
    state = jaxbn.init_state(2)
    for x in batches:
        _, state = jaxbn.batch_norm(x, state, momentum=momentum)
    want = reference.running(map_moments(batches), momentum=momentum)
    np.testing.assert_allclose(state.mean, want.mean, atol=1e-4)
    np.testing.assert_allclose(state.var, want.var, rtol=1e-4)


def map_moments(batches):
    return [reference.moments(x) for x in batches]


def test_defect_d4_the_state_has_one_axis_and_needs_no_bound_axis_to_start():
    chex.assert_tree_shape_prefix(jaxbn.init_state(5), (5,))
    chex.assert_rank(jax.tree.leaves(jaxbn.init_state(5)), 1)


VALID = np.array([0, 1, 2, 5, 8, 8, 8, 8])


def test_defect_d5_replicas_with_unequal_valid_counts_share_right_statistics():
    # flax: a mean of per-replica means, NaN for ever with one empty replica
    x = draw((8, 8, 3), mean=1) + jnp.arange(8.0)[:, None, None]
    where = jnp.arange(8)[None, :, None] < VALID[:, None, None]
    layer = functools.partial(jaxbn.batch_norm, axis_name="i")
    y, state = jax.vmap(
        lambda x, where: layer(x, jaxbn.init_state(3), where=where), axis_name="i"
    )(x, where)
    flat, valid = np.reshape(x, (64, 3)), np.reshape(where, (64, 1))
    want = reference.batch_norm(flat, where=valid)
    np.testing.assert_allclose(np.reshape(y, (64, 3)), want, atol=ROUNDING * 8)
    np.testing.assert_allclose(state.mean[0], flat[valid[:, 0]].mean(0), rtol=1e-5)


def test_defect_d6_a_mask_of_numbers_is_refused_with_a_way_out():
    x, mask = draw((8, 3)), jnp.ones((8, 1))
    with pytest.raises(TypeError, match="Write `where != 0`"):
        jaxbn.batch_norm(x, jaxbn.init_state(3), where=mask)
    jaxbn.batch_norm(x, jaxbn.init_state(3), where=mask != 0)


@pytest.mark.parametrize("mean", [100.3, 1000.7])
def test_defect_d7_evaluation_in_bfloat16_never_rounds_the_running_mean(mean):
    # nnx: the mean is rounded to a multiple of 0.5 and subtracted in bfloat16
    x = draw((256, 1), mean=mean, std=8, dtype=jnp.bfloat16)
    state = jaxbn.BatchNormState(jnp.array([mean]), jnp.array([64.0]), jnp.ones(1))
    y = jaxbn.batch_norm_inference(x, state)
    want = reference.normalize(x, state.mean, state.var)
    limit = 2 * reference.unit_roundoff(x.dtype) * np.abs(want) + 1e-4
    assert (np.abs(reference.wide(y) - want) <= limit).all()


@pytest.mark.parametrize("kind", ["vmap", "shard_map"])
def test_defect_d8_groups_work_outside_pmap(kind):
    # flax, haiku: NotImplementedError without a message
    x = draw((8, 4, 3), mean=2)
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]

    def layer(x):
        return jaxbn.batch_norm(
            x, jaxbn.init_state(3), axis_name="d", axis_groups=groups
        )[0]

    if kind == "vmap":
        y = jax.vmap(layer, axis_name="d")(x)
    else:
        mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
        sharded = jax.shard_map(layer, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
        y = jax.jit(sharded)(x.reshape(32, 3))
    for part, want in zip(
        np.reshape(y, (4, 8, 3)), np.reshape(x, (4, 8, 3)), strict=True
    ):
        np.testing.assert_allclose(part, reference.batch_norm(want), atol=ROUNDING)


def test_defect_d9_the_documented_momentum_is_the_one_in_the_code():
    for function in (jaxbn.batch_norm, jaxbn.update):
        assert inspect.signature(function).parameters["momentum"].default == 0.99
        assert "weight of the old" in re.sub(r"\s+", " ", function.__doc__)


@pytest.mark.parametrize("channels", [1, 3])
def test_defect_d10_a_mask_works_for_channels_first_and_for_one_channel(channels):
    x, where = draw((6, channels, 4), mean=2), draw((6, 1, 4), seed=1) > -0.5
    y, _ = jaxbn.batch_norm(x, jaxbn.init_state(channels), axis=1, where=where)
    want = reference.batch_norm(x, axis=1, where=where)
    np.testing.assert_allclose(y, want, atol=ROUNDING)


def test_defect_d10_a_fully_masked_batch_changes_no_state_and_is_finite():
    state = jaxbn.BatchNormState(jnp.ones(3) * 4, jnp.ones(3) * 2, jnp.ones(3))
    y, new = jaxbn.batch_norm(draw((8, 3)), state, where=jnp.zeros((8, 1), bool))
    assert jnp.isfinite(y).all()
    chex.assert_trees_all_equal(new, state)


def test_defect_d11_without_a_name_statistics_are_those_of_the_global_batch():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    x = draw((64, 3), mean=2) + jnp.arange(64.0)[:, None]
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, P("d")))
    y, _ = jax.jit(jaxbn.batch_norm)(sharded, jaxbn.init_state(3))
    np.testing.assert_allclose(y, reference.batch_norm(x), atol=ROUNDING)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_defect_d13_an_empty_member_of_16_bits_is_no_special_case(dtype):
    x = draw((4, 8, 3), mean=2, dtype=dtype)
    where = jnp.broadcast_to(jnp.arange(4)[:, None, None] > 0, (4, 8, 1))
    y, state = jax.vmap(
        lambda x, where: jaxbn.batch_norm(
            x, jaxbn.init_state(3), where=where, axis_name="i"
        ),
        axis_name="i",
    )(x, where)
    flat = np.reshape(x[1:], (24, 3))
    np.testing.assert_allclose(state.var[0], reference.wide(flat).var(0), rtol=ROUNDING)
    assert y.dtype == dtype


def test_defect_d15_a_nonfinite_step_can_leave_the_statistics_alone():
    x = draw((8, 3)).at[0, 0].set(jnp.inf)
    state = jaxbn.init_state(3)
    _, new = jaxbn.batch_norm(x, state, skip_nonfinite=True)
    chex.assert_trees_all_equal(new, state)


def test_defect_d16_the_default_momentum_forgets_slowly():
    old = jaxbn.BatchNormState(jnp.zeros(1), jnp.zeros(1), jnp.full(1, 1000.0))
    new = jaxbn.update(old, jaxbn.moments(jnp.ones((4, 1))))
    np.testing.assert_allclose(new.mean, [0.01], rtol=1e-3)


def test_defect_d17_a_dead_feature_has_a_finite_gradient():
    def loss(x):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(2))
        return jnp.sum(y**2 * jnp.arange(16.0).reshape(8, 2))

    gradient = jax.grad(loss)(draw((8, 2)).at[:, 0].set(3.0))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("mean", [1e4, 1e5])
def test_defect_d18_the_variance_is_never_negative_nor_wrong(mean):
    x = draw((1024, 4), mean=mean)
    batch = jaxbn.moments(x)
    np.testing.assert_allclose(
        batch.m2 / 1024,
        reference.wide(x).var(0),
        rtol=reference.statistics_error(1024, x.dtype),
    )


def test_defect_d20_merging_replicas_keeps_the_variance_between_their_means():
    parts = [draw((16, 2), seed=i, mean=3 * i) for i in range(4)]
    whole = functools.reduce(jaxbn.merge, map(jaxbn.moments, parts))
    want = reference.wide(jnp.concatenate(parts)).var(0)
    np.testing.assert_allclose(whole.m2 / whole.count, want, rtol=ROUNDING)
