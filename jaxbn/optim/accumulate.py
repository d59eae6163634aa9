"""Gradient accumulation: the moments of micro-batches, merged until all are there."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.core import checks, trees, values
from jaxbn.core.moments import merged
from jaxbn.core.state import update
from jaxbn.core.types import BatchNormState, Moments


def init_accumulation(states: Any) -> Any:
    """The moments of no values, to start `accumulate` with.

    Args:
        states: a BatchNormState, or any tree of them.

    Returns:
        The tree with Moments in place of the states, in float32, or float64 for
        float64 states.

    Raises:
        TypeError: if something else is in the tree.

    Example:
        >>> jaxbn.optim.init_accumulation(jaxbn.init_state(2)).count
        Array([0., 0.], dtype=float32)
    """

    def nothing(state: BatchNormState) -> Moments:
        var = jnp.zeros_like(state.var, checks.statistics_type(state.var))
        mean = jnp.zeros_like(state.mean, checks.statistics_type(state.mean))
        return Moments(var, mean, var)

    return trees.over(nothing, trees.of_states(states))


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
        TypeError: if there is no state or no Moments in a place of the trees, or
            `ready` is no bool.
        ValueError: if the trees differ, or moments have another shape than their state.

    Example:
        >>> state = jaxbn.init_state(1)
        >>> seen = jaxbn.optim.init_accumulation(state)
        >>> for i, x in enumerate(jnp.arange(4.0).reshape(2, 2, 1)):
        ...     m = jaxbn.moments(x)
        ...     seen, state = jaxbn.optim.accumulate(seen, state, m, ready=i == 1)
        >>> state.mean, state.var
        (Array([1.5], dtype=float32), Array([1.25], dtype=float32))
    """
    states = trees.of_states(states)
    moments = trees.with_moments(states, moments)
    accumulated = trees.with_moments(states, accumulated, "accumulated")
    ready = values.array("ready", ready)
    if ready.dtype != jnp.bool_ or ready.shape:
        raise TypeError(
            f"`ready` must be True or False, got {values.shown(ready)}. It says "
            "whether this is the last micro-batch."
        )
    # What is accumulated may be narrower or wider than the moments.
    with jax.numpy_dtype_promotion("standard"):
        total = trees.over(merged, accumulated, moments)

    def one(state: BatchNormState, moments: Moments) -> BatchNormState:
        new = update(state, moments, momentum=momentum, **options)
        return jax.tree.map(lambda a, b: jnp.where(ready, a, b), new, state)

    states = trees.over(one, states, total)
    left = jax.tree.map(
        lambda old, v: jnp.where(ready, 0, v).astype(old.dtype),
        accumulated,
        total,
    )
    return left, states
