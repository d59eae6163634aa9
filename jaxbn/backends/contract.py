"""The contract of an implementation. A leaf file: every other module may import it.

Notation, for `x` of any rank with feature axes `axes` (sorted, non-negative):

* a *full* array has the shape of `x`; a *vector* has the shape of the feature axes;
* rows are all positions that are not feature axes, and sums run over rows;
* `where` is None or an array of the rank of `x` whose sizes are 1 or those of `x`: a
  boolean one selects the values that count, one of the statistics type weighs them;
* vectors and sums are in the statistics type: float32 for float16, bfloat16 and
  float32, float64 for float64. Full results have the type of `x`.

A leading batch dimension of `vmap`, or the group dimension of a ghost batch, arrives
as one more feature axis, so an implementation never sees either.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType


class Gate(NamedTuple):
    """A factor activation'(gate_slope * (x - center) + gate_offset), recomputed from x.

    Attributes:
        part: "other" where it multiplies the term of the other operand (`expand`), or
            the first result (`sums`); "affine" where it multiplies the term of `slope`
            and `offset`, or `a` in the two sums.
        activation: the elementwise function whose derivative it is.
    """

    part: str
    activation: Callable[[Array], Array]


class Kernels(NamedTuple):
    """The loops over `x` that an implementation supplies.

    All are local and pure: no mesh axis, no state, no argument check and no derivative
    rule. Optional operands are None when absent.

    Attributes:
        moments: (x, where, *, axes) -> (center, delta, m2, unit). The mean is
            center + delta, kept in two parts because for |mean| >> std their sum does
            not fit the statistics type; m2 * unit^2 is the sum of squared distances to
            it, with a unit of 1 unless m2 would overflow. Zeros, and a unit of 1,
            where nothing counts.
        sums: (a, x, center, multiplier, where, gate_slope, gate_offset, *, axes,
            gate=None, both=True) -> (multiplier * a, sum of a, sum of a * (x -
            center)), `where` applying to the two sums, weights as a factor. Without
            `multiplier` the first result is left out. Linear in `a`. A `gate`
            multiplies the first result or the summands. If not `both`, one of the sums
            is not used, and need not be computed.
        expand: (a, multiplier, slope, offset, x, center, where, gate_slope,
            gate_offset, *, axes, activation=None, gate=None) -> multiplier * a +
            where(where, slope * (x - center) + offset, 0), or weights times that line.
            Without `multiplier` it is one; without `a` the term is left out. Linear in
            (a, slope, offset), and there the transpose of `sums` with the same `gate`.
            `activation` is an elementwise function applied to the result before it is
            rounded; it comes with neither `multiplier` nor `where` nor `gate`.
        gate: (dy, x, center, slope, offset, residual, *, axes, activation) -> dy times
            the derivative of `activation` at slope * (x - center) + offset + residual.
            Without `center`, at `x` itself and in its type. Linear in `dy`.
        saved: x -> x, in a backward pass. Behind a barrier, but on a GPU: XLA would
            share conversions of `x` between the two passes and keep them in float32
            instead of `x`, on a CPU a sixth more memory for a ResNet-50 in bfloat16.
    """

    moments: Callable[..., tuple[Array, ...]]
    sums: Callable[..., tuple[Array, ...]]
    expand: Callable[..., Array]
    gate: Callable[..., Array]
    saved: Callable[[Array], Array] = lax.optimization_barrier


def number_of(x: Array, over: Sequence[int]) -> Any:
    """The number of values along axes, as a float if known: int32 ends at 2^31."""
    number = math.prod(x.shape[i] for i in over)
    return float(number) if isinstance(number, int) else number


def divisor(count: float | Array) -> float | Array:
    """`count`, or one where nothing counts. A sum of weights may be below one."""
    if isinstance(count, float):
        return max(count, 1)
    return jnp.where(count > 0, count, jnp.ones_like(count))


def counted(values: Array, where: Array | None) -> Array:
    """`values` with zero where they do not count, or times their weights."""
    if where is None:
        return values
    seen, zero = where, jnp.zeros((), values.dtype)
    if where.dtype != jnp.bool_:
        seen, values = where.astype(bool), (values * where).astype(values.dtype)
    return jnp.where(seen, values, zero)  # also where a value is not finite


def without_nonfinite(x: Array, where: Array) -> Array:
    """`x` with zero instead of NaN or infinity where it does not count."""
    return jnp.where(where.astype(bool) | jnp.isfinite(x), x, jnp.zeros((), x.dtype))


def rows(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that sums run over."""
    return tuple(i for i in range(x.ndim) if i not in axes)


def is_explicit(x: Array) -> bool:
    """Tells whether the sharding of `x` is part of its type, which forbids reshapes."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def split_axes(x: Array) -> list[int]:
    """The axes that lie on several devices, as far as the type of `x` tells."""
    return [i for i, name in enumerate(jax.typeof(x).sharding.spec) if name is not None]


def statistics_type(x: Array) -> jnp.dtype:
    """The type of statistics of `x`, also where implicit promotion is switched off."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(x.dtype, jnp.float32)
