"""Merges the moments of many parts at once."""

import jax.numpy as jnp

from jaxbn.backends.contract import divisor
from jaxbn.core.types import Moments


def pool(parts: Moments, *, axis: int = 0) -> Moments:
    """The moments of all parts together, the parts being listed along one axis.

    With n = sum_i n_i,

        mean = sum_i n_i mean_i / n,   m2 = sum_i m2_i + sum_i n_i |mean_i - mean|^2,

    which is `jaxbn.merge` for many (Chan, Golub and LeVeque, Algorithms for computing
    the sample variance, 1983). A part without values changes nothing.

    Args:
        parts: moments with one more axis than the result.
        axis: the axis that lists the parts.

    Returns:
        Moments without that axis.

    Example:
        >>> x = jnp.arange(6.0).reshape(3, 2, 1)
        >>> pool(jaxbn.moments(x, axis=(0, 2))).mean
        Array([2.5], dtype=float32)
    """
    count, mean, m2 = parts
    total = count.sum(axis, keepdims=True)
    share = count / divisor(total)
    mean = jnp.where(count > 0, mean, 0)
    center = (share * mean).sum(axis, keepdims=True)
    # Once more about the result: the first sum is rounded like the means themselves.
    center = center + (share * (mean - center)).sum(axis, keepdims=True)
    between = count * jnp.square(jnp.abs(mean - center))
    return Moments(total.squeeze(axis), center.squeeze(axis), (m2 + between).sum(axis))
