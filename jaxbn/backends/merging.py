"""Merges the moments of parts, blocks of rows or devices, in one sum over the parts.

The sum is of means and of mean squares about zero, whose difference is the variance:
it is taken in float64, so that a mean of 1e5 standard deviations leaves 1e-6 of it.

Not every platform can add float64 numbers across devices in one all-reduce, but all can
add float32. So a number travels as three parts of eight binary digits and a rest, 48
digits in all. Parts of numbers of one size add without rounding, up to 2^16 of them. If
the sizes differ, so do the numbers, and the error is small beside their variance.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# The unit of values whose squares do not fit float32.
LARGE = 2.0**64
_PARTS = 4
_DIGITS = 7  # of a part, behind its leading one


class Centered(NamedTuple):
    """Moments whose mean is kept as center + delta.

    For |mean| >> std the sum does not fit float32; the two parts do. All derivatives
    are in `delta`, so `center` may be any constant. All but `count` have one shape,
    that of the feature axes.

    Attributes:
        count: number of values; a Python int where it is known without looking.
        center: in the statistics type.
        delta: same.
        m2: sum of squared distances to the mean in units of unit^2, real.
        unit: a constant, 1 unless m2 would overflow; None if it is 1 everywhere.
    """

    count: int | Array
    center: Array
    delta: Array
    m2: Array
    unit: Any

    @property
    def constant(self) -> "Centered":
        """The same without derivatives; a count that is known stays so."""
        return Centered(self.count, *lax.stop_gradient(self[1:]))

    @property
    def shrink(self) -> Array:
        """Factor of a distance before it is squared: 1 / unit."""
        return 1 / self.unit

    def inverse(self, epsilon: float) -> Array:
        """1 / sqrt(m2 / count + epsilon), the variance being biased."""
        square = self.m2 / jnp.maximum(self.count, 1)
        return lax.rsqrt(square + epsilon * self.shrink * self.shrink) * self.shrink


def merged(
    parts: Centered,
    total: Callable[[Array], Array],
    number: int | None,
    *,
    encoded: bool,
    near: Callable[[Array], Array] | None = None,
) -> Centered:
    """The moments of all parts.

    Args:
        parts: moments; without values they are zero or anything.
        total: the sum over all parts of an array that has one more axis in front.
        number: of the parts, if they have the same known count; None if not.
        encoded: whether float32 is what `total` takes.
        near: from the means to one that is near all of them, if there is such.
    """
    if parts.m2.dtype == jnp.float64:
        return _merged_float64(parts, total)
    with _float64():
        mean = parts.center.astype(jnp.float64) + parts.delta
        square = parts.m2.astype(jnp.float64)
        if parts.unit is not None:
            square = square * jnp.square(parts.unit.astype(jnp.float64))
        counts = None
        if number is None:  # by an addition, so that it is placed as the others are
            counts = jnp.asarray(parts.count, jnp.float64) + jnp.zeros_like(mean)
            mean = jnp.where(counts > 0, mean, 0)
        square = square / jnp.maximum(parts.count if counts is None else counts, 1)
        origin = 0 if near is None else near(mean)
        terms = jnp.stack([mean - origin, square + jnp.square(mean - origin)])
        terms = terms if counts is None else terms * counts[None]
        terms = _encode(terms) if encoded else terms
        if counts is not None:
            sums = total(jnp.concatenate([terms, counts[None].astype(terms.dtype)]))
            sums, weight, n = sums[:-1], sums[-1], sums[-1]
        else:
            sums, weight, n = total(terms), number, parts.count * (number or 0)
        sums = _decode(sums) if encoded else sums
        weight = jnp.maximum(jnp.asarray(weight, jnp.float64), 1)
        first, second = (v / weight for v in sums)
        m2 = jnp.maximum(second - jnp.square(first), 0) * n
        return _rounded(n, first + origin, m2)


def _rounded(n: Array | int, mean: Array, m2: Array) -> Centered:
    """Moments in float32."""
    center = mean.astype(jnp.float32)
    # Where the mean is not finite the center is zero, and delta says so.
    center = jnp.where(jnp.isfinite(center), center, 0)
    delta = (mean - center.astype(jnp.float64)).astype(jnp.float32)
    unit = jnp.where(jnp.isfinite(m2.astype(jnp.float32)), 1.0, LARGE)
    m2 = (m2 / unit / unit).astype(jnp.float32)
    n = n if isinstance(n, int) else n.astype(jnp.float32)
    return Centered(n, center, delta, m2, unit.astype(jnp.float32))


def _merged_float64(parts: Centered, total: Callable[[Array], Array]) -> Centered:
    """The same in float64: first a center, then sums about it."""
    count = jnp.asarray(parts.count, jnp.float64) + jnp.zeros_like(parts.m2)
    center, delta = (jnp.where(count > 0, v, 0) for v in (parts.center, parts.delta))
    n, first = total(jnp.stack([count, count * center]))
    middle = first / jnp.maximum(n, 1)
    middle = jnp.where(jnp.isfinite(middle), middle, 0)
    # All are near the middle: their differences have no rounding error.
    distance = (center - middle) + delta
    square = parts.m2 + count * jnp.square(distance)
    first, second = total(jnp.stack([count * distance, square]))
    delta = first / jnp.maximum(n, 1)
    m2 = jnp.maximum(second - n * jnp.square(delta), 0)
    return Centered(n, middle, delta, m2, jnp.ones_like(m2))


@contextlib.contextmanager
def _float64():
    """Allows float64 and mixtures of types, whatever the user's settings."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def _encode(terms: Array) -> Array:
    """Two float64 numbers as float32 that can be added, along the first axis."""
    first, second = terms
    large = (second / LARGE / LARGE).astype(jnp.float32)
    return jnp.stack([*_split(first), *_split(second), large])


def _decode(parts: Array) -> Array:
    """The sums of numbers in float64, from the sum of the encoded ones."""
    first, second = _join(parts[:_PARTS]), _join(parts[_PARTS:-1])
    large = parts[-1].astype(jnp.float64) * LARGE * LARGE
    return jnp.stack([first, jnp.where(jnp.isfinite(second), second, large)])


def _split(values: Array) -> list[Array]:
    """Centered in float32 whose sum is `values` to 48 binary digits."""
    parts = []
    for _ in range(_PARTS - 1):
        part = lax.reduce_precision(values.astype(jnp.float32), 8, _DIGITS)
        parts.append(part)
        values = jnp.where(jnp.isfinite(part), values - part.astype(jnp.float64), 0)
    return [*parts, values.astype(jnp.float32)]


def _join(parts: Array) -> Array:
    total = parts[-1].astype(jnp.float64)
    for part in parts[-2::-1]:
        total = total + part.astype(jnp.float64)
    return total
