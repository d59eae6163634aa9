"""Test-time adaptation mixes statistics as in Schneider et al."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxbn
from jaxbn.deploy import adapt


def case(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (5, 4, 3)).astype(np.float32)
    mean, var, count = rng.random((3, 3)).astype(np.float32)
    return x, jaxbn.BatchNormState(mean, var, count)


@given(st.integers(0, 99), st.floats(0, 1e4), st.sampled_from([None, 5]))
def test_statistics_are_the_weighted_average(seed, prior, count):
    x, state = case(seed)
    n = 20 if count is None else count
    wide = x.astype(np.float64)
    got = adapt({"a": state}, {"a": jaxbn.moments(x)}, prior_count=prior, count=count)
    for new, old, test in (
        (got["a"].mean, state.mean, wide.mean((0, 1))),
        (got["a"].var, state.var, wide.var((0, 1))),
    ):
        want = prior / (prior + n) * old + n / (prior + n) * test
        np.testing.assert_allclose(new, want, rtol=3e-6, atol=3e-6)


def test_channels_without_test_values_keep_theirs():
    x, state = case(0)
    nothing = jaxbn.moments(x, where=np.zeros((1, 1, 3), bool))
    for prior in (0, 7.0):
        got = adapt(state, nothing, prior_count=prior, count=5)
        jax.tree.map(np.testing.assert_array_equal, got, state)


def test_prior_may_be_traced_and_has_a_message():
    x, state = case(1)
    test = jaxbn.moments(x)
    traced = jax.jit(lambda n: adapt(state, test, prior_count=n))(3.0)
    plain = adapt(state, test, prior_count=3.0)
    np.testing.assert_allclose(traced.mean, plain.mean, rtol=1e-6)
    with pytest.raises(ValueError, match="`prior_count` must be not negative, got -1"):
        adapt(state, test, prior_count=-1)
