"""Merges the moments of parts, blocks of rows or devices, in one sum over the parts.

The sum is of means and of mean squares about zero, whose difference is the variance:
it is taken in float64, so that a mean of 1e5 standard deviations leaves 1e-6 of it.

Not every platform can add float64 numbers across devices in one all-reduce, but all can
add float32. So a number travels as three parts of eight binary digits and a rest, 48
digits in all. Parts of numbers of one size add without rounding, up to 2^16 of them. If
the sizes differ, so do the means, and the error is small beside their variance.

With masks or weights the sizes differ as the counts do. Then a number travels as parts
of twelve digits whose places are those of one grid for all numbers. A part goes by its
place to one of six slots, where it meets parts of the same place, up to 2^12 of them
without rounding, or such that are 2^60 times as large or as small.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import divisor

# The unit of values whose squares do not fit float32.
LARGE = 2.0**64
_PARTS, _DIGITS = 4, 7  # of a part, behind its leading one
_SLOTS, _PLACE = 6, 12  # digits of a place on the grid


class Centered(NamedTuple):
    """Moments whose mean is kept as center + delta.

    For |mean| >> std the sum does not fit float32; the two parts do. All derivatives
    are in `delta`, so `center` may be any constant. All but `count` have one shape,
    that of the feature axes.

    Attributes:
        count: number of values; a Python float if shapes tell it: int32 ends at 2^31.
        center: in the statistics type.
        delta: same.
        m2: sum of squared distances to the mean in units of unit^2, real.
        unit: a constant, 1 unless m2 would overflow; None if it is 1 everywhere.
    """

    count: float | Array
    center: Array
    delta: Array
    m2: Array
    unit: Any

    @property
    def constant(self) -> "Centered":
        """The same without derivatives; a count that is known stays so."""
        count, *others = self
        count = count if isinstance(count, float) else lax.stop_gradient(count)
        return Centered(count, *lax.stop_gradient(others))

    @property
    def shrink(self) -> Array:
        """Factor of a distance before it is squared: 1 / unit."""
        return 1 / self.unit

    def inverse(self, epsilon: float) -> Array:
        """1 / sqrt(m2 / count + epsilon), the variance being biased."""
        square = self.m2 / divisor(self.count)
        return lax.rsqrt(square + epsilon * self.shrink * self.shrink) * self.shrink


def merged(
    parts: Centered,
    total: Callable[[Array], Array],
    number: int | None,
    *,
    encoded: bool,
    near: Callable[[Array], Array] | None = None,
    has_float64: bool = True,
) -> Centered:
    """The moments of all parts.

    Args:
        parts: moments; without values they are zero or anything.
        total: the sum over all parts of an array that has one more axis in front.
        number: of the parts, if they have the same known count; None if not.
        encoded: whether float32 is what `total` takes.
        near: from the means to one that is near all of them, if there is such.
        has_float64: whether the platform computes in float64 itself.
    """
    if parts.m2.dtype == jnp.float64:
        return _merged_float64(parts, total)
    if not (has_float64 or encoded):
        return _merged_float32(parts, total)
    with _float64():
        mean = parts.center.astype(jnp.float64) + parts.delta
        square = parts.m2.astype(jnp.float64)
        if parts.unit is not None:
            square = square * jnp.square(parts.unit.astype(jnp.float64))
        counts = None
        if number is None:  # by an addition, so that it is placed as the others are
            counts = jnp.asarray(parts.count, jnp.float64) + jnp.zeros_like(mean)
            mean = jnp.where(counts > 0, mean, 0)
        square = square / divisor(parts.count if counts is None else counts)
        origin = 0 if near is None else near(mean)
        terms = jnp.stack([mean - origin, square + jnp.square(mean - origin)])
        if counts is not None:  # which have more digits than float32, in sum
            terms = jnp.concatenate([terms * counts[None], counts[None]])
        sums = _decode(total(_encode(terms))) if encoded else total(terms)
        if counts is None:
            weight = float(number or 0)
            n = parts.count * weight
        else:
            weight = n = sums[2]
        weight = jnp.asarray(divisor(weight), jnp.float64)
        first, second = (v / weight for v in sums[:2])
        m2 = jnp.maximum(second - jnp.square(first), 0) * n
        return _rounded(n, first + origin, m2)


def _rounded(n: Array | float, mean: Array, m2: Array) -> Centered:
    """Moments in float32."""
    center = mean.astype(jnp.float32)
    # Where the mean is not finite the center is zero, and delta says so.
    center = jnp.where(jnp.isfinite(center), center, 0)
    delta = (mean - center.astype(jnp.float64)).astype(jnp.float32)
    unit = jnp.where(jnp.isfinite(m2.astype(jnp.float32)), 1.0, LARGE)
    m2 = (m2 / unit / unit).astype(jnp.float32)
    n = n.astype(jnp.float32) if isinstance(n, Array) else n
    return Centered(n, center, delta, m2, unit.astype(jnp.float32))


def _merged_float32(parts: Centered, total: Callable[[Array], Array]) -> Centered:
    """The same in float32, about the mean of the parts' centers.

    As the centers are among the values, the square of that mean's distance to the mean
    of all is at most the variance times the values of a part. So no more is lost than
    within a part, if typically twice as much as in float64.
    """

    def sums(values: Array) -> Array:
        return total(values[None])[0]  # not of one array: XLA:TPU would store it first

    counts = jnp.asarray(parts.count, jnp.float32) + jnp.zeros_like(parts.m2)
    n = sums(counts)
    # Without values they are anything.
    center, delta, m2 = (jnp.where(counts > 0, v, 0) for v in parts[1:4])
    middle = sums(counts * (center / divisor(n)))
    middle = jnp.where(jnp.isfinite(middle), middle, 0)
    distance, held = (center - middle) + delta, parts.unit
    squares = []
    for unit in (1.0, LARGE):
        scale, far = (1.0 if held is None else held) / unit, distance / unit
        squares += [m2 * scale * scale + counts * jnp.square(far)]
    small, large = map(sums, squares)
    delta, fits = sums(counts * distance) / divisor(n), jnp.isfinite(small)
    unit = jnp.where(fits, jnp.float32(1), LARGE)
    m2 = jnp.where(fits, small, large) - n * jnp.square(delta / unit)
    return Centered(n, middle, delta, jnp.maximum(m2, 0), unit)


def _merged_float64(parts: Centered, total: Callable[[Array], Array]) -> Centered:
    """The same in float64: first a center, then sums about it."""
    count = jnp.asarray(parts.count, jnp.float64) + jnp.zeros_like(parts.m2)
    center, delta = (jnp.where(count > 0, v, 0) for v in (parts.center, parts.delta))
    n, first = total(jnp.stack([count, count * center]))
    middle = first / divisor(n)
    middle = jnp.where(jnp.isfinite(middle), middle, 0)
    # All are near the middle: their differences have no rounding error.
    distance = (center - middle) + delta
    square = parts.m2 + count * jnp.square(distance)
    first, second = total(jnp.stack([count * distance, square]))
    delta = first / divisor(n)
    m2 = jnp.maximum(second - n * jnp.square(delta), 0)
    return Centered(n, middle, delta, m2, jnp.ones_like(m2))


@contextlib.contextmanager
def _float64():
    """Allows float64 and mixtures of types, whatever the user's settings."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def _encode(terms: Array) -> Array:
    """Float64 numbers as float32 that can be added, along the first axis.

    These are the first and second moments, or those times counts, and the counts.
    """
    large = (terms[1] / LARGE / LARGE).astype(jnp.float32)
    split = _split if len(terms) == 2 else _split_on_grid
    return jnp.stack([large, *(part for term in terms for part in split(term))])


def _decode(parts: Array) -> Array:
    """The sums of numbers in float64, from the sum of the encoded ones."""
    large, parts = parts[0].astype(jnp.float64) * LARGE * LARGE, parts[1:]
    each = _PARTS if len(parts) == 2 * _PARTS else _SLOTS
    first, second, *n = (_join(parts[i : i + each]) for i in range(0, len(parts), each))
    return jnp.stack([first, jnp.where(jnp.isfinite(second), second, large), *n])


def _split(values: Array) -> list[Array]:
    """Parts in float32 whose sum is `values` to 48 binary digits."""
    parts = []
    for _ in range(_PARTS - 1):
        part = lax.reduce_precision(values.astype(jnp.float32), 8, _DIGITS)
        parts.append(part)
        values = jnp.where(jnp.isfinite(part), values - part.astype(jnp.float64), 0)
    return [*parts, values.astype(jnp.float32)]


def _split_on_grid(values: Array) -> list[Array]:
    """Slots in float32 whose sum is `values` to 60 binary digits."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    top = (((bits >> 23) & 255) - 127) // _PLACE  # the place of the leading part
    slots = [jnp.zeros_like(top, jnp.float32)] * _SLOTS
    for number in range(_SLOTS):
        place = top - number
        exponent = jnp.clip(place * _PLACE, -126, 126)
        part = values.astype(jnp.float32)
        if number < _SLOTS - 1:
            part = jnp.trunc(part * _power_of_two(-exponent)) * _power_of_two(exponent)
        mine = place % _SLOTS
        slots = [jnp.where(mine == i, part, slot) for i, slot in enumerate(slots)]
        values = jnp.where(jnp.isfinite(part), values - part.astype(jnp.float64), 0)
    return slots


def _power_of_two(exponent: Array) -> Array:
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _join(parts: Array) -> Array:
    total = parts[-1].astype(jnp.float64)
    for part in parts[-2::-1]:
        total = total + part.astype(jnp.float64)
    return total
