"""Sums over very many rows lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("rows", [10**7, 10**8])
def test_moments_of_many_rows_are_those_of_float64(rows, offset):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 1), dtype=np.float32) + np.float32(offset)
    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    got = jax.jit(jaxbn.moments)(x)
    np.testing.assert_allclose(got.mean, mean, rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(got.m2 / rows, var, rtol=1e-5)
    np.testing.assert_array_equal(got.count, np.float32(rows))


@pytest.mark.slow
def test_a_million_steps_leave_the_running_statistics_in_place():
    batch = jaxbn.moments(jnp.asarray([[1.0], [3.0]]))

    def step(state, _):
        return jaxbn.update(state, batch, momentum=0.9999), None

    state, _ = jax.lax.scan(step, jaxbn.init_state(1), length=10**6)
    np.testing.assert_allclose(state.mean, 2.0, rtol=1e-3)
    np.testing.assert_allclose(state.var, 1.0, rtol=1e-3)
    np.testing.assert_array_equal(state.count, 10.0**6)
