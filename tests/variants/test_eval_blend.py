"""Evaluation blends running statistics with those of each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxbn
from jaxbn.variants.eval_blend import eval_blend, fit_eval_blend


def case(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, (5, 7, 3))
    mean, scale, bias = rng.normal(size=(3, 3))
    var = rng.uniform(0.5, 4, 3)
    where = rng.random((5, 7, 1)) < 0.7
    where[0] = False
    arrays = [jnp.asarray(v, jnp.float32) for v in (x, scale, bias, mean, var)]
    state = jaxbn.BatchNormState(*arrays[3:], jnp.ones(3))
    return *arrays[:3], state, jnp.asarray(where)


def reference(x, scale, bias, state, where, alpha):
    """Mixed E[x] and E[x^2], as in the paper, in float64."""
    x, scale, bias, mean, var = (
        np.asarray(v, np.float64) for v in (x, scale, bias, *state[:2])
    )
    out = []
    for example, mask in zip(x, np.asarray(where)[..., 0], strict=True):
        values = example[mask]
        a = alpha if len(values) else 0 * alpha
        values = values if len(values) else np.zeros((1, 3))
        first = (1 - a) * mean + a * values.mean(0)
        second = (1 - a) * (var + mean**2) + a * (values**2).mean(0)
        y = (example - first) / np.sqrt(second - first**2 + 1e-5)
        out.append(y * scale + bias)
    return np.stack(out)


@jax.jit
def call(x, scale, bias, state, where, alpha):
    return eval_blend(x, state, scale, bias, where=where, alpha=alpha)


@given(seed=st.integers(0, 99), alpha=st.floats(0, 1), each=st.booleans())
def test_equals_the_mixture_of_first_and_second_moments(seed, alpha, each):
    arrays = case(seed)
    alpha = np.float32(alpha) * (np.array([1, 0.5, 0], np.float32) if each else 1)
    got = call(*arrays, jnp.asarray(alpha))
    want = reference(*arrays, np.asarray(alpha, np.float64))
    np.testing.assert_allclose(got, want, rtol=5e-5, atol=5e-5)


def test_zero_is_ordinary_evaluation_and_one_is_instance_normalization():
    x, scale, bias, state, _ = case(0)
    got = eval_blend(x, state, scale, bias, alpha=0, activation="relu")
    want = jaxbn.batch_norm_inference(x, state, scale, bias, activation="relu")
    np.testing.assert_allclose(got, want, atol=1e-6)
    got = eval_blend(x, state, alpha=1.0)
    want = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_channels_first_and_dense_inputs():
    x, scale, bias, state, _ = case(1)
    first = eval_blend(x.swapaxes(1, 2), state, scale, bias, alpha=0.3, axis=1)
    want = eval_blend(x, state, scale, bias, alpha=0.3)
    np.testing.assert_allclose(first.swapaxes(1, 2), want, atol=1e-6)
    dense = eval_blend(x[:, 0], state, alpha=0.3)
    distance = x[:, 0] - state.mean
    var = 0.7 * state.var + 0.21 * distance**2
    np.testing.assert_allclose(dense, 0.7 * distance / jnp.sqrt(var + 1e-5), rtol=1e-4)


@pytest.mark.parametrize("batch", [2, 8])
def test_fit_finds_the_minimum_of_its_loss(batch):
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(40, batch, 1, 3))
    x = jnp.asarray(rng.normal(size=(40, batch, 4, 3)) + offsets, jnp.float32)
    pooled = jaxbn.moments(x)
    state = jaxbn.update(jaxbn.init_state(3), pooled)
    alpha = jax.jit(lambda x: fit_eval_blend(x, state))(x)

    trained = jax.vmap(lambda x: jaxbn.batch_norm(x, state)[0])(x)

    def loss(alpha):
        y = jax.vmap(lambda x: eval_blend(x, state, alpha=alpha))(x)
        return jnp.mean((y - trained) ** 2)

    grid = jnp.linspace(0, 1, 257)
    losses = jax.jit(lambda g: jax.lax.map(loss, g))(grid)
    assert abs(alpha - grid[jnp.argmin(losses)]) < 1 / 200
    assert loss(alpha) < losses[0]
    assert 0 < alpha < 1.5 / batch


def test_messages_name_the_argument():
    x, state = jnp.ones((4, 3)), jaxbn.init_state(3)
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], got 1.5"):
        eval_blend(x, state, alpha=1.5)
    with pytest.raises(ValueError, match="`axis` must not be the first axis"):
        eval_blend(x, jaxbn.init_state(4), alpha=0.1, axis=0)
    with pytest.raises(ValueError, match="`axis` must not be the first axis"):
        fit_eval_blend(x, state)


def test_a_weight_for_other_channels_is_named():
    x, state = jnp.ones((4, 2, 3)), jaxbn.init_state(3)
    with pytest.raises(ValueError, match=r"`alpha` must be a number or have shape \(3"):
        eval_blend(x, state, alpha=np.array([0.5, 0.1]))
