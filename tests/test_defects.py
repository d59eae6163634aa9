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


def draw(shape, seed=0, mean=0.0, std=1.0, dtype=np.float32):
    return np.random.default_rng(seed).normal(mean, std, shape).astype(dtype)


START = jaxbn.BatchNormState(np.zeros(3, "f"), np.ones(3, "f"), np.zeros(3, "f"))
layer = jax.jit(lambda x, state=START, **call: jaxbn.batch_norm(x, state, **call))
infer = jax.jit(jaxbn.batch_norm_inference)


def test_the_start_is_that_of_the_library():
    chex.assert_trees_all_equal_shapes_and_dtypes(START, jaxbn.init_state(3))
    chex.assert_trees_all_equal(START, jaxbn.init_state(3))


def test_defect_d1_a_debiased_variance_does_not_remember_its_start():
    # equinox: v + m^n / (1 - m^n), which is v + 99 after one step
    batch = jax.jit(jaxbn.moments)(draw((32, 3), std=2))
    want = batch.m2 / batch.count

    @jax.jit
    def follow(state, batch, momentum):
        return jaxbn.update(state, batch, momentum=momentum)

    for momentum in (0.9, 0.99, 0.999):
        state = START
        for steps in range(1, 101):
            state = follow(state, batch, momentum)
            if steps in (1, 10, 100):
                np.testing.assert_allclose(
                    state.var,
                    want,
                    rtol=ROUNDING * np.sqrt(steps),
                    err_msg=f"{momentum = }, {steps = }",
                )


def test_defect_d1_evaluation_after_one_step_uses_that_batch():
    x = draw((32, 3), mean=5, std=2)
    y, state = layer(x)
    np.testing.assert_allclose(infer(x, state), y, atol=1e-5)


def test_defect_d2_the_first_bfloat16_batch_meets_a_float32_state():
    y, state = jax.eval_shape(layer, draw((32, 3), mean=5, dtype=jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and state.mean.dtype == jnp.float32


def test_defect_d3_a_momentum_of_0_999_survives_bfloat16():
    # haiku: bfloat16(0.999) is 1, the average is 0 / 0
    batches = [draw((64, 3), seed=i, mean=i, dtype=jnp.bfloat16) for i in range(5)]
    moments = [reference.moments(x) for x in batches]
    momenta = (0.9, 0.99, 0.999, 0.9999)

    @jax.jit
    def step(x, states):
        return [
            jaxbn.batch_norm(x, state, momentum=m)[1]
            for m, state in zip(momenta, states, strict=True)
        ]

    states = [START] * len(momenta)
    for x in batches:
        states = step(x, states)
    for momentum, state in zip(momenta, states, strict=True):
        want, name = reference.running(moments, momentum=momentum), f"{momentum = }"
        np.testing.assert_allclose(state.mean, want.mean, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(state.var, want.var, rtol=1e-4, err_msg=name)


def test_defect_d4_the_state_has_one_axis_and_needs_no_bound_axis_to_start():
    chex.assert_tree_shape_prefix(jaxbn.init_state(5), (5,))
    chex.assert_rank(jax.tree.leaves(jaxbn.init_state(5)), 1)


VALID = np.array([0, 1, 2, 5, 8, 8, 8, 8])


@jax.jit
def together(x, where):
    """Members of an axis share statistics, each with a mask of its own."""

    def member(x, where):
        return jaxbn.batch_norm(x, START, where=where, axis_name="i")

    return jax.vmap(member, axis_name="i")(x, where)


def test_defect_d5_replicas_with_unequal_valid_counts_share_right_statistics():
    # flax: a mean of per-replica means, NaN for ever with one empty replica
    x = draw((8, 8, 3), mean=1) + np.arange(8, dtype=np.float32)[:, None, None]
    where = np.arange(8)[None, :, None] < VALID[:, None, None]
    y, state = together(x, where)
    flat, valid = np.reshape(x, (64, 3)), np.reshape(where, (64, 1))
    want = reference.batch_norm(flat, where=valid)
    np.testing.assert_allclose(np.reshape(y, (64, 3)), want, atol=ROUNDING * 8)
    np.testing.assert_allclose(state.mean[0], flat[valid[:, 0]].mean(0), rtol=1e-5)


def test_defect_d6_a_mask_of_numbers_is_refused_with_a_way_out():
    x, mask = draw((8, 3)), np.ones((8, 1))
    with pytest.raises(TypeError, match="Write `where != 0`"):
        jax.eval_shape(layer, x, where=mask)
    jax.eval_shape(layer, x, where=mask != 0)


def test_defect_d7_evaluation_in_bfloat16_never_rounds_the_running_mean():
    # nnx: the mean is rounded to a multiple of 0.5 and subtracted in bfloat16
    for mean in (100.3, 1000.7):
        x = draw((256, 1), mean=mean, std=8, dtype=jnp.bfloat16)
        values = ([mean], [64.0], [1.0])
        state = jaxbn.BatchNormState(*(np.array(v, np.float32) for v in values))
        want = reference.normalize(x, state.mean, state.var)
        limit = 2 * reference.unit_roundoff(x.dtype) * np.abs(want) + 1e-4
        error = np.abs(reference.wide(infer(x, state)) - want)
        assert (error <= limit).all(), f"{mean = }"


@pytest.mark.parametrize("kind", ["vmap", "shard_map"])
def test_defect_d8_groups_work_outside_pmap(kind):
    # flax, haiku: NotImplementedError without a message
    x = draw((8, 4, 3), mean=2)
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]

    def layer(x):
        return jaxbn.batch_norm(x, START, axis_name="d", axis_groups=groups)[0]

    if kind == "vmap":
        y = jax.jit(jax.vmap(layer, axis_name="d"))(x)
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


def test_defect_d10_a_mask_works_for_channels_first_and_for_one_channel():
    where = draw((6, 1, 4), seed=1) > -0.5
    inputs = {channels: draw((6, channels, 4), mean=2) for channels in (1, 3)}

    @jax.jit
    def run(inputs):
        return {
            c: jaxbn.batch_norm(x, jaxbn.init_state(c), axis=1, where=where)[0]
            for c, x in inputs.items()
        }

    for channels, y in run(inputs).items():
        want = reference.batch_norm(inputs[channels], axis=1, where=where)
        name = f"{channels} channels"
        np.testing.assert_allclose(y, want, atol=ROUNDING, err_msg=name)


def test_defect_d10_a_fully_masked_batch_changes_no_state_and_is_finite():
    values = (4, 2, 1)
    state = jaxbn.BatchNormState(*(np.full(3, v, np.float32) for v in values))
    y, new = layer(draw((8, 3)), state, where=np.zeros((8, 1), bool))
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(new, state)


def test_defect_d11_without_a_name_statistics_are_those_of_the_global_batch():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    x = draw((64, 3), mean=2) + np.arange(64, dtype=np.float32)[:, None]
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, P("d")))
    y, _ = layer(sharded)
    np.testing.assert_allclose(y, reference.batch_norm(x), atol=ROUNDING)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_defect_d13_an_empty_member_of_16_bits_is_no_special_case(dtype):
    x = draw((4, 8, 3), mean=2, dtype=dtype)
    where = np.broadcast_to(np.arange(4)[:, None, None] > 0, (4, 8, 1))
    y, state = together(x, where)
    flat = np.reshape(x[1:], (24, 3))
    np.testing.assert_allclose(state.var[0], reference.wide(flat).var(0), rtol=ROUNDING)
    assert y.dtype == dtype


def test_defect_d15_a_nonfinite_step_can_leave_the_statistics_alone():
    x = draw((8, 3))
    x[0, 0] = np.inf
    _, new = jax.jit(lambda x: jaxbn.batch_norm(x, START, skip_nonfinite=True))(x)
    chex.assert_trees_all_equal(new, START)


def test_defect_d16_the_default_momentum_forgets_slowly():
    values = ([0], [0], [1000])
    old = jaxbn.BatchNormState(*(np.array(v, np.float32) for v in values))
    new = jax.jit(lambda x: jaxbn.update(old, jaxbn.moments(x)))(np.ones((4, 1), "f"))
    np.testing.assert_allclose(new.mean, [0.01], rtol=1e-3)


def test_defect_d17_a_dead_feature_has_a_finite_gradient():
    def loss(x):
        y, _ = jaxbn.batch_norm(x, START)
        return jnp.sum(y**2 * np.arange(24, dtype=np.float32).reshape(8, 3))

    x = draw((8, 3))
    x[:, 0] = 3
    assert np.isfinite(jax.jit(jax.grad(loss))(x)).all()


def test_defect_d18_the_variance_is_never_negative_nor_wrong():
    moments = jax.jit(jaxbn.moments)
    for mean in (1e4, 1e5):
        x = draw((1024, 4), mean=mean)
        np.testing.assert_allclose(
            moments(x).m2 / 1024,
            reference.wide(x).var(0),
            rtol=reference.statistics_error(1024, x.dtype),
            err_msg=f"{mean = }",
        )


def test_defect_d20_merging_replicas_keeps_the_variance_between_their_means():
    parts = [draw((16, 2), seed=i, mean=3 * i) for i in range(4)]

    @jax.jit
    def merged(parts):
        return functools.reduce(jaxbn.merge, map(jaxbn.moments, parts))

    whole = merged(parts)
    want = reference.wide(np.concatenate(parts)).var(0)
    np.testing.assert_allclose(whole.m2 / whole.count, want, rtol=ROUNDING)
