"""The reference implementation in lax: right everywhere, also for sharded operands.

No reshape, so the automatic partitioner keeps every sharding it is given.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import Kernels, statistics_type

# A pass about `center` loses about eps * (1 + distance^2 / variance) of the variance.
_ACCEPTED_SQUARED_DISTANCE = 16.0
# A sum from which the center is taken at the end is rounded at the size of the center.
_ACCEPTED_SQUARED_ROUNDING = 2.0**-20


def along(vector: Array, like: Array, axes: tuple[int, ...]) -> Array:
    """Broadcasts a vector of the feature axes to the shape of `like`."""
    return lax.broadcast_in_dim(vector, like.shape, axes)


def rows(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that sums run over."""
    return tuple(i for i in range(x.ndim) if i not in axes)


def _select(where: Array | None, values: Array) -> Array:
    if where is None:
        return values
    return jnp.where(where, values, jnp.zeros((), values.dtype))


def _moments(x, shift, count, where, *, axes, floor):
    wide = statistics_type(x)
    divisor = jnp.maximum(count, 1)

    def about(center, *, exact):
        # XLA:CPU computes two reductions of one producer several times slower than
        # each alone, so the two differ: by a sign, and for 16 bits, whose values have
        # fewer digits than the sum, by leaving the center to the end.
        opposite = x.astype(wide) + along(-center, x, axes)
        if exact:
            distance = x.astype(wide) - along(center, x, axes)
            total = _select(where, distance).sum(rows(x, axes))
        else:
            total = _select(where, x).astype(wide).sum(rows(x, axes)) - count * center
        delta = total / divisor
        square = _select(where, jnp.square(opposite)).sum(rows(x, axes))
        return center, delta, jnp.maximum(square - count * jnp.square(delta), 0)

    center, delta, m2 = about(shift, exact=x.dtype == wide)
    spread = m2 + count * floor
    near = count * jnp.square(delta) <= _ACCEPTED_SQUARED_DISTANCE * spread
    if x.dtype != wide:
        rounding = jnp.finfo(wide).eps * shift
        near &= count * jnp.square(rounding) <= _ACCEPTED_SQUARED_ROUNDING * spread
    return lax.cond(
        jnp.all(near | ~jnp.isfinite(delta)),
        lambda: (center, delta, m2),
        lambda: about(center + delta, exact=True),
    )


def _sums(a, x, center, multiplier, where, *, axes):
    wide = statistics_type(x)
    total = _select(where, a.astype(wide)).sum(rows(x, axes))
    # An addition, for `expand` subtracts: XLA:CPU would store a shared distance.
    product = a.astype(wide) * (x.astype(wide) + along(-center, x, axes))
    moment = _select(where, product).sum(rows(x, axes))
    if multiplier is None:
        return total, moment
    scaled = a.astype(wide) * along(multiplier, x, axes)
    return scaled.astype(x.dtype), total, moment


def _expand(a, multiplier, slope, offset, x, center, where, *, axes, activation=None):
    z = _affine(a, multiplier, slope, offset, x, center, where, axes)
    return (z if activation is None else activation(z)).astype(x.dtype)


def _gate(dy, x, center, slope, offset, residual, *, axes, activation):
    z = _affine(residual, None, slope, offset, x, center, None, axes)
    return jax.jvp(activation, (z,), (dy.astype(z.dtype),))[1].astype(x.dtype)


def _affine(a, multiplier, slope, offset, x, center, where, axes):
    wide = statistics_type(x)
    distance = x.astype(wide) - along(center, x, axes)
    z = _select(where, distance * along(slope, x, axes) + along(offset, x, axes))
    if a is not None and multiplier is None:
        z = z + a.astype(wide)
    elif a is not None:
        z = z + a.astype(wide) * along(multiplier, x, axes)
    return z


KERNELS = Kernels(_moments, _sums, _expand, _gate)
