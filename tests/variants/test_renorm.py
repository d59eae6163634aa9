"""Batch renormalization follows the paper, with bounds that may be traced."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

import jaxbn
import jaxbn.linen_variants
import jaxbn.nnx_variants
from jaxbn.variants.renorm import (
    RenormState,
    batch_renorm,
    batch_renorm_inference,
    init_renorm_state,
)
from jaxbn.variants.schedule import renorm_schedule

P = PartitionSpec


def case(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, (16, 5, 3))
    scale, bias, mean = rng.normal(size=(3, 3))
    sigma = rng.uniform(0.3, 4, 3)
    where = rng.random((16, 5, 1)) < 0.7
    arrays = (x, scale, bias, mean, sigma, np.zeros(3))
    arrays = [v.astype(np.float32) for v in arrays]
    return *arrays[:3], RenormState(*arrays[3:]), where


def reference(x, scale, bias, state, where, r_max, d_max, *, debias, unbiased):
    x, scale, bias, mean, sigma = (
        np.asarray(v, np.float64) for v in (x, scale, bias, *state[:2])
    )
    values = x[np.asarray(where)[..., 0]]
    mean_b, sigma_b = values.mean(0), np.sqrt(values.var(0) + 1e-5)
    r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
    d = np.clip((mean_b - mean) / sigma, -d_max, d_max)
    y = ((x - mean_b) / sigma_b * r + d) * scale + bias
    if unbiased:
        sigma_b = np.sqrt(values.var(0, ddof=1) + 1e-5)
    rate = 0.1 / (1 - 0.9 ** (state.count[0] + 1)) if debias else 0.1
    return y, (mean + rate * (mean_b - mean), sigma + rate * (sigma_b - sigma))


AVERAGES = [{"debias": d, "unbiased": u} for d in (True, False) for u in (True, False)]


@jax.jit
def call(x, scale, bias, state, where, r_max, d_max):
    """The results of all averages, which are one program."""
    common = {"where": where, "momentum": 0.9, "r_max": r_max, "d_max": d_max}
    return [batch_renorm(x, state, scale, bias, **common, **how) for how in AVERAGES]


@given(
    seed=st.integers(0, 99),
    r_max=st.floats(1, 4),
    d_max=st.floats(0, 6),
    how=st.sampled_from(AVERAGES),
)
def test_equals_the_float64_reference(seed, r_max, d_max, how):
    x, scale, bias, state, where = case(seed)
    arguments = (x, scale, bias, state, where, r_max, d_max)
    y, new = call(*arguments)[AVERAGES.index(how)]
    want, (mean, sigma) = reference(*arguments, **how)
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(new.mean, mean, rtol=5e-6, atol=1e-6)
    np.testing.assert_allclose(new.sigma, sigma, rtol=5e-6, atol=1e-6)


def test_tight_bounds_are_batch_normalization_with_its_gradients():
    x, scale, bias, state, where = case(0)

    def renorm(x, scale, bias):
        y, _ = batch_renorm(x, state, scale, bias, r_max=1, d_max=0, where=where)
        return jnp.sum(jnp.sin(y))

    def plain(x, scale, bias):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(3), scale, bias, where=where)
        return jnp.sum(jnp.sin(y))

    @jax.jit
    def derivatives(*arrays):
        return [
            {
                "first": jax.grad(f, (0, 1, 2))(*arrays),
                "second": jax.jacfwd(jax.grad(f), (1, 2))(*arrays),
            }
            for f in (renorm, plain)
        ]

    got, want = derivatives(x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, want)
    np.testing.assert_allclose(got["first"][0], want["first"][0], atol=1e-5)


def test_wide_bounds_give_the_output_of_evaluation():
    x, scale, bias, state, _ = case(1)
    y, _ = call(x, scale, bias, state, np.ones((16, 5, 1), bool), 1e6, 1e6)[0]
    want = jax.jit(batch_renorm_inference)(x, state, scale, bias)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_gradient_treats_r_and_d_as_constants():
    x, scale, bias, state, _ = case(2)
    x = x.reshape(-1, 3)

    def renorm(x):
        return jnp.sum(batch_renorm(x, state, scale, bias, r_max=2, d_max=1)[0] ** 3)

    sigma_b = np.sqrt(x.var(0) + 1e-5)
    r = np.clip(sigma_b / state.sigma, 0.5, 2)
    d = np.clip((x.mean(0) - state.mean) / state.sigma, -1, 1)

    def by_hand(x):
        z = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
        return jnp.sum(((z * r + d) * scale + bias) ** 3)

    got, want = jax.jit(lambda x: (jax.grad(renorm)(x), jax.grad(by_hand)(x)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_shard_map_with_empty_devices_equals_one_device():
    x, scale, bias, state, where = case(3)
    where[:4] = False

    def loss(x, scale, bias, where, axis_name=None):
        bounds = {"r_max": 1.5, "d_max": 0.5}
        y, new = batch_renorm(
            x, state, scale, bias, where=where, axis_name=axis_name, **bounds
        )
        return jnp.sum(jnp.sin(y) * where), new

    grad = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)

    def local(*args):
        (value, new), grads = grad(*args, axis_name="d")
        return jax.lax.psum(value, "d"), new, grads

    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))
    specs = (P("d"), P(), P(), P("d"))
    out = (P(), P(), (P("d"), P(), P()))
    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out))
    (value, new), grads = jax.jit(grad)(x, scale, bias, where)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5),
        run(x, scale, bias, where),
        (value, new, grads),
    )


def test_far_mean_and_empty_batch():
    x = np.random.default_rng(0).normal(1e4, 1, (64, 3)).astype(np.float32)
    state = init_renorm_state(3)
    nothing = np.zeros((1, 1), bool)

    @jax.jit
    def run(x):
        far = batch_renorm(x, state, r_max=1, d_max=0)
        return far, batch_renorm(x, state, r_max=3, d_max=5, where=nothing)

    (y, _), (empty, new) = run(x)
    wide = np.asarray(x, np.float64)
    want = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(y, want, atol=1e-3)
    np.testing.assert_allclose(empty, x, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_the_first_state_is_float32_also_with_64_bits():
    with jax.enable_x64(True):
        assert {leaf.dtype for leaf in init_renorm_state(2)} == {jnp.dtype("float32")}


def test_schedule_is_that_of_the_paper_also_when_traced():
    schedule = renorm_schedule()
    steps = np.array([0, 5_000, 15_000, 22_500, 25_000, 40_000, 90_000])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(schedule.r_max))(steps),
        np.interp(steps, [5_000, 40_000], [1, 3]),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        jax.jit(jax.vmap(schedule.d_max))(steps),
        np.interp(steps, [5_000, 25_000], [0, 5]),
        rtol=1e-6,
    )


def test_a_schedule_is_a_value():
    schedule = renorm_schedule()
    assert schedule == renorm_schedule() != renorm_schedule(r_max=2.0)
    assert len({schedule, renorm_schedule()}) == 1
    layer = jaxbn.linen_variants.BatchRenorm(True)
    assert pickle.loads(pickle.dumps(layer)) == layer
    layer = jaxbn.nnx_variants.BatchRenorm(2, rngs=nnx.Rngs(0))
    same = pickle.loads(pickle.dumps(layer))
    assert (same.r_max, same.d_max) == tuple(schedule)


def test_crossq_joint_batch_shares_statistics_between_current_and_next_actions():
    """One forward pass over both batches, as in CrossQ: no target network."""
    rng = np.random.default_rng(0)
    now, later = (rng.normal(size=(2, 32, 3)) * 2 + 1).astype(np.float32)
    weights = rng.normal(size=(3, 1)).astype(np.float32)

    def critic(weights, state):
        joint = jnp.concatenate([now, later])
        h, state = batch_renorm(joint, state, r_max=3.0, d_max=5.0)
        value, next_value = jnp.split(jnp.tanh(h) @ weights, 2)
        target = jax.lax.stop_gradient(0.9 * next_value)
        return jnp.mean((value - target) ** 2), (h, state)

    grad, (h, state) = jax.jit(jax.grad(critic, has_aux=True))(
        weights, init_renorm_state(3)
    )
    both = np.concatenate([now, later])
    np.testing.assert_allclose(h, both, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.mean, both.mean(0), rtol=1e-5)
    assert np.isfinite(grad).all()


def test_messages_name_the_argument():
    x, state = np.ones((4, 3), np.float32), init_renorm_state(3)
    with pytest.raises(ValueError, match=r"`r_max` must be at least 1, got 0.5"):
        batch_renorm(x, state, r_max=0.5, d_max=0)
    with pytest.raises(ValueError, match="`d_max` must be at least 0, got -1"):
        batch_renorm(x, state, r_max=1, d_max=-1)
    with pytest.raises(TypeError, match="`state` must be a RenormState, got Batch"):
        batch_renorm(x, jaxbn.init_state(3), r_max=1, d_max=0)  # pyright: ignore
    with pytest.raises(TypeError, match=r"`x` must be real, got complex64"):
        batch_renorm(x.astype(complex), state, r_max=1, d_max=0)
