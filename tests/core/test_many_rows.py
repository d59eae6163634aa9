"""Sums over very many rows lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import variants

LARGE = (16, 512, 512, 512, 4)  # 2^31 values of each channel


def layers(x):
    """Every way to the number of values: by shapes, masks, weights and members."""
    state, many = jaxbn.init_state(4), jnp.ones((1,) * x.ndim, bool)
    rows = jnp.ones((*x.shape[:1], *[1] * (x.ndim - 1)), bool)
    bounds = variants.init_renorm_state(4)
    return [
        jaxbn.batch_norm(x, state),
        jaxbn.batch_norm(x, state, where=many),
        jaxbn.batch_norm(x, state, where=rows, unbiased=True),
        jaxbn.batch_norm(x, state, weights=many.astype(jnp.float32)),
        jaxbn.batch_norm(
            x.astype(jnp.complex64), jaxbn.init_state(4, dtype="complex64")
        ),
        jax.vmap(lambda x: jaxbn.batch_norm(x, state, axis_name="n"), axis_name="n")(x),
        jax.vmap(lambda x: jaxbn.moments(x, axis_name="n"), axis_name="n")(x),
        jaxbn.batch_norm(x, state, implementation="xla", activation="relu"),
        variants.batch_renorm(x, bounds, r_max=3.0, d_max=5.0, unbiased=True),
        variants.ghost_batch_norm(x, state, ghost_batch_size=16),
        variants.eval_blend(x, state, alpha=0.5),
    ]


@pytest.mark.parametrize("x64", [False, True])
def test_the_number_of_values_may_exceed_int32(x64):
    def pulled(x):
        y, pull = jax.vjp(lambda x: layers(x)[0][0], x)
        return pull(y)

    with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard"):  # complex
        x = jax.ShapeDtypeStruct(LARGE, jnp.bfloat16)
        jax.eval_shape(layers, x)
        jax.jit(pulled).trace(x).lower(lowering_platforms=("cpu", "cuda", "tpu"))


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
