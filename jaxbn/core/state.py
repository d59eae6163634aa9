"""Running statistics: how they start and how a batch changes them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jaxbn.core import checks, placement
from jaxbn.core.types import BatchNormState, Moments


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
        TypeError: if a size is no integer, of Python or NumPy.
        ValueError: if a size is negative.

    Example:
        >>> jaxbn.init_state(2).var
        Array([1., 1.], dtype=float32)
    """
    shape = feature_shape(num_features)
    mean = jnp.zeros(shape, dtype)
    real = mean.real.dtype
    # In 16 bits a count would stop at 256.
    count = jnp.zeros(shape, real if real.itemsize >= 4 else jnp.float32)
    return BatchNormState(mean, jnp.ones(shape, real), count)


def feature_shape(num_features: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of the feature axes as Python integers."""
    sizes: tuple[Any, ...] = (num_features,)
    if isinstance(num_features, Iterable) and np.ndim(num_features) > 0:
        sizes = tuple(num_features)
    if not all(isinstance(n, int | np.integer) for n in sizes):
        raise TypeError(
            "`num_features` must be an integer or a tuple of integers, got "
            f"{type(num_features).__name__}. It is the size of the feature axis, for "
            "example `x.shape[-1]`."
        )
    if any(n < 0 for n in sizes):
        raise ValueError(
            f"`num_features` must not be negative, got {num_features!r}. It is the "
            "size of the feature axis."
        )
    return tuple(map(int, sizes))


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
        ValueError: if `momentum` is out of range or shapes differ.

    Example:
        >>> batch = jaxbn.moments(jnp.array([[1.0], [3.0]]))
        >>> jaxbn.update(jaxbn.init_state(1), batch).mean
        Array([2.], dtype=float32)
    """
    momentum = checks.momentum(momentum, debias=debias)
    checks.same_shape(state, moments)
    given, moments = lax.stop_gradient((state, moments))
    moments, state = placement.alike((moments, given))
    freedom = moments.count - 1 if unbiased else moments.count
    var = moments.m2 / jnp.maximum(freedom, 1)
    taken = moments.count > 0
    if skip_nonfinite:
        finite = jnp.isfinite(moments.mean) & jnp.isfinite(moments.m2)
        taken &= jnp.all(finite | ~taken)
    count = state.count + 1
    weight = _weight(momentum, count, debias=debias)

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


def _weight(momentum, count: Array, *, debias: bool) -> Array | float:
    if momentum is None:
        return 1 / count
    if not debias:
        return 1 - momentum
    if isinstance(momentum, jax.Array):
        logarithm = jnp.log(momentum)
    else:
        logarithm = math.log(momentum) if momentum > 0 else -math.inf
    return (1 - momentum) / -jnp.expm1(count * logarithm)
