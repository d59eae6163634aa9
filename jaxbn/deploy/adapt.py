"""Adapts running statistics to the data at hand, at test time."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import divisor
from jaxbn.core import options, trees
from jaxbn.core.records import COUNT
from jaxbn.core.types import BatchNormState, Moments


def adapt(
    states: Any,
    moments: Any,
    *,
    prior_count: float | Array,
    count: float | Array | None = None,
) -> Any:
    """Mixes running statistics with those of test data.

    With N = `prior_count` and n = `count`, the mean and likewise the variance become

        N / (N + n) * running + n / (N + n) * test.

    N = 0 uses the test data alone (prediction-time batch normalization, Nado et al.
    2020, https://arxiv.org/abs/2006.10963), a large N the running statistics.

    Args:
        states: a BatchNormState, or any tree of them.
        moments: of the test data, Moments wherever `states` has a BatchNormState.
        prior_count: how many examples the running statistics are worth, >= 0; may be
            traced.
        count: number n of test examples. Default: the number of values per channel,
            which for images counts every pixel; pass the batch size to count images
            as the paper does.

    Returns:
        New states. Channels without a test value keep theirs; no gradient flows.

    Raises:
        TypeError: if there is no state or no Moments in a place of the trees.
        ValueError: if the trees differ, or a number is negative.

    Reference:
        Schneider et al., Improving robustness against common corruptions by covariate
        shift adaptation, 2020. https://arxiv.org/abs/2006.16971

    Example:
        >>> test = jaxbn.moments(jnp.array([[3.0], [5.0]]))
        >>> jaxbn.deploy.adapt(jaxbn.init_state(1), test, prior_count=2).mean
        Array([2.], dtype=float32)
    """
    prior_count = _number("prior_count", prior_count)
    count = None if count is None else _number("count", count)
    states = trees.of_states(states)
    moments = trees.with_moments(states, moments)

    def one(state: BatchNormState, test: Moments) -> BatchNormState:
        kind = test.m2.shape, test.m2.dtype
        prior, n = options.per_channel("prior_count", prior_count, *kind), test.count
        if count is not None:
            n = jnp.where(n > 0, options.per_channel("count", count, *kind), 0)
        # Of no values it would be 0 / 0, which stops `jax.debug_nans`.
        share = n / jnp.where(n > 0, prior + n, 1)
        var = test.m2 / divisor(test.count)
        return BatchNormState(
            _mix(state.mean, test.mean, share), _mix(state.var, var, share), state.count
        )

    return lax.stop_gradient(trees.over(one, states, moments))


def _number(name: str, value: Any) -> Any:
    hint = "It is a number of examples; 0 uses the test data alone."
    return options.numbers(name, value, *COUNT, hint=hint)


def _mix(old: Array, new: Array, share: Array) -> Array:
    return (old + share * (new - old)).astype(old.dtype)
