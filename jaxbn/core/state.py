"""Running statistics: how they start and how a batch changes them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxbn.backends.contract import divisor
from jaxbn.core import checks, options, placement, values
from jaxbn.core.records import record
from jaxbn.core.types import BatchNormState, Moments

_TINY = float(jnp.finfo(jnp.float32).tiny)


def init_state(
    num_features: int | Sequence[int], *, dtype: DTypeLike = jnp.float32
) -> BatchNormState:
    """Running statistics before the first batch: mean 0, variance 1, count 0.

    Args:
        num_features: number of channels, or the sizes of several feature axes.
        dtype: type of the mean; the variance is real, the count float32 or wider.

    Returns:
        A state whose three leaves have the shape of the feature axes.

    Raises:
        TypeError: if a size is no integer, or `dtype` neither floating point nor
            complex.
        ValueError: if a size is negative.

    Example:
        >>> jaxbn.init_state(2).var
        Array([1., 1.], dtype=float32)
    """
    shape = options.sizes("num_features", num_features)
    mean = jnp.zeros(shape, options.inexact("dtype", dtype))
    real = mean.real.dtype
    # In 16 bits a count would stop at 256.
    count = jnp.zeros(shape, real if real.itemsize >= 4 else jnp.float32)
    return BatchNormState(mean, jnp.ones(shape, real), count)


def update(
    state: BatchNormState,
    moments: Moments,
    *,
    momentum: float | Array | None = 0.99,
    debias: bool = True,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
) -> BatchNormState:
    """The running statistics after one more batch.

    With t = count + 1, the mean and likewise the variance become

        (1 - a) old + a new,   a = (1 - momentum) / (1 - momentum^t),

    which is the exponential moving average without its bias towards the initial value
    (Kingma and Ba, Adam, 2015, section 3): after one batch it is that batch. Channels
    that the batch has no value for stay as they are. No gradient flows into the result.

    Args:
        state: the running statistics.
        moments: of the batch, the same shape.
        momentum: weight of the old value, in [0, 1); may be traced. None gives every
            batch the same weight (the cumulative average).
        debias: if False, a = 1 - momentum, as in Flax, Keras and PyTorch.
        unbiased: if True, the batch's variance is m2 / (count - 1), as PyTorch stores
            it; channels with one value then keep their variance.
        skip_nonfinite: if True, a batch with an infinite or NaN moment in any channel
            leaves the state as it is.

    Returns:
        The new state, in the types of the old one and sharded like it.

    Raises:
        TypeError: if `state` or `moments` is of another type, or an option no number
            or bool.
        ValueError: if `momentum` is out of range, shapes differ, or a known value is
            impossible, as a negative count or a mean that is not finite.

    Example:
        >>> batch = jaxbn.moments(jnp.array([[1.0], [3.0]]))
        >>> jaxbn.update(jaxbn.init_state(1), batch).mean
        Array([2.], dtype=float32)
    """
    how = average_of(momentum, debias, unbiased, skip_nonfinite)
    state = record("state", state)
    return updated(state, checks.moments_of(state, moments), how)


class Average(NamedTuple):
    """Options of an update of the running statistics, see `update`."""

    momentum: Any
    debias: bool
    unbiased: bool
    skip_nonfinite: bool


def average_of(momentum, debias, unbiased, skip_nonfinite) -> Average:
    """The options of `update`, checked."""
    debias = options.flag("debias", debias)
    return Average(
        options.momentum(momentum, debias=debias),
        debias,
        options.flag("unbiased", unbiased),
        options.flag("skip_nonfinite", skip_nonfinite),
    )


def updated(state: BatchNormState, moments: Moments, how: Average) -> BatchNormState:
    """`update` of checked arguments."""
    given, moments = lax.stop_gradient((state, moments))
    moments, state = placement.alike((moments, given))
    freedom = moments.count - 1 if how.unbiased else moments.count
    var = moments.m2 / divisor(freedom)
    taken = where_counted(moments.count > 0, how, moments.mean, moments.m2)
    count = state.count + 1
    weight = weight_of_new(how, count.astype(var.dtype))

    def average(old, new, where):
        # The state may be narrower or wider than the moments.
        with jax.numpy_dtype_promotion("standard"):
            mixed = (1 - weight) * old + weight * new
        return jnp.where(where, mixed.astype(old.dtype), old)

    new = BatchNormState(
        average(state.mean, moments.mean, taken),
        average(state.var, var, taken & (freedom > 0)),
        jnp.where(taken, count, state.count).astype(state.count.dtype),
    )
    return BatchNormState(*map(placement.like, new, given))


def where_counted(seen: Array, how: Average, mean: Array, spread: Array) -> Array:
    """Marks the channels that a batch changes: none if a value may not count."""
    if not how.skip_nonfinite:
        return seen
    finite = jnp.isfinite(mean) & jnp.isfinite(spread)
    return seen & jnp.all(finite | ~seen)


def weight_of_new(how: Average, count: Array) -> Array | float:
    """The weight of the new value, for a batch that is the `count`-th."""
    momentum = how.momentum
    if momentum is None:
        return 1 / count
    if isinstance(momentum, Array):  # in 16 bits 1 - momentum has two digits
        momentum = momentum.astype(count.dtype)
    if not how.debias:
        return 1 - momentum
    # The logarithm of zero would stop `jax.debug_infs`; of this it is -87.
    if isinstance(momentum, Array):
        logarithm = jnp.log(jnp.maximum(momentum, _TINY))
    else:
        logarithm = math.log(max(momentum, _TINY))
    return (1 - momentum) / -jnp.expm1(count * logarithm)


def require_count(state: Any) -> None:
    """Refuses averages of no batch, where known: the first batch would replace them."""
    mean, spread, count = map(values.known, state)
    if mean is None or spread is None or count is None:
        return
    if ((count == 0) & ((mean != 0) | (spread != 1))).any():
        raise ValueError(
            "`count` must be the number of batches that the running statistics "
            "average, got 0 for others than the first ones (of Flax?). Set it beside "
            "them."
        )
