"""Evaluation blends running statistics with those of each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxbn
from jaxbn.variants.blend import eval_blend, fit_eval_blend


def case(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, (5, 7, 3))
    mean, scale, bias = rng.normal(size=(3, 3))
    var = rng.uniform(0.5, 4, 3)
    where = rng.random((5, 7, 1)) < 0.7
    where[0] = False
    arrays = [v.astype(np.float32) for v in (x, scale, bias, mean, var, np.ones(3))]
    return *arrays[:3], jaxbn.BatchNormState(*arrays[3:]), where


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
def call(x, scale, bias, state, where, alpha, each):
    """With one weight, and with one for each channel."""
    options = {"where": where, "alpha": alpha}
    one = eval_blend(x, state, scale, bias, **options)
    return one, eval_blend(x, state, scale, bias, **options | {"alpha": each})


@given(seed=st.integers(0, 99), alpha=st.floats(0, 1))
def test_equals_the_mixture_of_first_and_second_moments(seed, alpha):
    arrays, one = case(seed), np.float32(alpha)
    weights = {"one weight": one, "one for each": one * np.array([1, 0.5, 0], "f")}
    for got, (name, weight) in zip(
        call(*arrays, *weights.values()), weights.items(), strict=True
    ):
        want = reference(*arrays, weight.astype(np.float64))
        np.testing.assert_allclose(got, want, rtol=5e-5, atol=5e-5, err_msg=name)


def test_zero_is_ordinary_evaluation_and_one_is_instance_normalization():
    x, scale, bias, state, _ = case(0)

    @jax.jit
    def run(x):
        affine = (state, scale, bias)
        return (
            eval_blend(x, *affine, alpha=0, activation="relu"),
            jaxbn.batch_norm_inference(x, *affine, activation="relu"),
            eval_blend(x, state, alpha=1.0),
        )

    got, want, one = run(x)
    np.testing.assert_allclose(got, want, atol=1e-6)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(one, want, atol=1e-5)


def test_channels_first_and_dense_inputs():
    x, scale, bias, state, _ = case(1)

    @jax.jit
    def run(x):
        affine, last = (state, scale, bias), x.swapaxes(1, 2)
        return (
            eval_blend(last, *affine, alpha=0.3, axis=1).swapaxes(1, 2),
            eval_blend(x, *affine, alpha=0.3),
            eval_blend(x[:, 0], state, alpha=0.3),
        )

    first, want, dense = run(x)
    np.testing.assert_allclose(first, want, atol=1e-6)
    distance = x[:, 0] - state.mean
    var = 0.7 * state.var + 0.21 * distance**2
    np.testing.assert_allclose(dense, 0.7 * distance / np.sqrt(var + 1e-5), rtol=1e-4)


@pytest.mark.parametrize("batch", [2, 8])
def test_fit_finds_the_minimum_of_its_loss(batch):
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(40, batch, 1, 3))
    x = (rng.normal(size=(40, batch, 4, 3)) + offsets).astype(np.float32)
    grid = np.linspace(0, 1, 257, dtype=np.float32)

    @jax.jit
    def run(x, grid):
        state = jaxbn.update(jaxbn.init_state(3), jaxbn.moments(x))
        alpha = fit_eval_blend(x, state)
        trained = jax.vmap(lambda x: jaxbn.batch_norm(x, state)[0])(x)

        def loss(alpha):
            y = jax.vmap(lambda x: eval_blend(x, state, alpha=alpha))(x)
            return jnp.mean((y - trained) ** 2)

        losses = jax.lax.map(loss, jnp.append(grid, alpha))
        return alpha, losses[:-1], losses[-1]

    alpha, losses, found = jax.device_get(run(x, grid))
    assert abs(alpha - grid[np.argmin(losses)]) < 1 / 200
    assert found < losses[0]
    assert 0 < alpha < 1.5 / batch


def test_messages_name_the_argument():
    x, state = np.ones((4, 3), np.float32), jaxbn.init_state(3)
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], got 1.5"):
        eval_blend(x, state, alpha=1.5)
    with pytest.raises(ValueError, match="`axis` must not be the first axis"):
        eval_blend(x, jaxbn.init_state(4), alpha=0.1, axis=0)
    with pytest.raises(ValueError, match="`axis` must not be the first axis"):
        fit_eval_blend(x, state)


def test_a_weight_for_other_channels_is_named():
    x, state = np.ones((4, 2, 3), np.float32), jaxbn.init_state(3)
    with pytest.raises(ValueError, match=r"`alpha` must be a number or have shape \(3"):
        eval_blend(x, state, alpha=np.array([0.5, 0.1]))
