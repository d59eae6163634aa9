"""Gradient accumulation: the moments of micro-batches, merged until all are there."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.core import checks
from jaxbn.core.moments import merge
from jaxbn.core.state import update
from jaxbn.core.types import BatchNormState, Moments


def init_accumulation(states: Any) -> Any:
    """The moments of no values, to start `accumulate` with.

    Args:
        states: a BatchNormState, or any tree of them.

    Returns:
        The tree with Moments in place of the states, in float32, or float64 for
        float64 states.

    Example:
        >>> jaxbn.optim.init_accumulation(jaxbn.init_state(2)).count
        Array([0., 0.], dtype=float32)
    """

    def nothing(state: BatchNormState) -> Moments:
        var = jnp.zeros_like(state.var, checks.statistics_type(state.var))
        mean = jnp.zeros_like(state.mean, checks.statistics_type(state.mean))
        return Moments(var, mean, var)

    return jax.tree.map(nothing, states, is_leaf=_is_state)


def accumulate(
    accumulated: Any,
    states: Any,
    moments: Any,
    *,
    ready: bool | Array,
    momentum: float | Array | None = 0.99,
    **options: Any,
) -> tuple[Any, Any]:
    """Merges the moments of one micro-batch; updates the states when all are there.

    The states after k micro-batches are those after one batch of all their examples,
    whatever their sizes and masks. With `optax.MultiSteps`, `ready` is
    `steps.has_updated(optimizer_state)` after its update. Each micro-batch is still
    normalized by itself: the averaged gradient is that of one ghost batch
    normalization over all examples whose groups are the micro-batches.

    Args:
        accumulated: from `init_accumulation` or the last call.
        states: running statistics, a BatchNormState or any tree of them.
        moments: of this micro-batch, Moments wherever `states` has a BatchNormState.
        ready: whether this is the last micro-batch; may be traced.
        momentum: weight of the old running value.
        options: `debias`, `unbiased` and `skip_nonfinite` of `jaxbn.update`.

    Returns:
        The accumulated moments, of no values if `ready`, and the states, each in the
        types they came in, so that both may be carried through `lax.scan`.

    Raises:
        ValueError: if moments have another shape than their state.

    Example:
        >>> state = jaxbn.init_state(1)
        >>> seen = jaxbn.optim.init_accumulation(state)
        >>> for i, x in enumerate(jnp.arange(4.0).reshape(2, 2, 1)):
        ...     m = jaxbn.moments(x)
        ...     seen, state = jaxbn.optim.accumulate(seen, state, m, ready=i == 1)
        >>> state.mean, state.var
        (Array([1.5], dtype=float32), Array([1.25], dtype=float32))
    """
    jax.tree.map(checks.update, states, moments, is_leaf=_is_state)
    add = functools.partial(jax.tree.map, is_leaf=lambda m: isinstance(m, Moments))
    # What is accumulated may be narrower or wider than the moments.
    with jax.numpy_dtype_promotion("standard"):
        total = add(merge, accumulated, moments)

    def one(state: BatchNormState, moments: Moments) -> BatchNormState:
        new = update(state, moments, momentum=momentum, **options)
        return jax.tree.map(lambda a, b: jnp.where(ready, a, b), new, state)

    states = jax.tree.map(one, states, total, is_leaf=_is_state)
    left = jax.tree.map(
        lambda old, v: jnp.where(ready, 0, v).astype(jnp.asarray(old).dtype),
        accumulated,
        total,
    )
    return left, states


def _is_state(value: Any) -> bool:
    return isinstance(value, BatchNormState)
