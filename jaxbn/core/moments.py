"""Count, mean and spread of a batch: of this device, then of all that share it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends import dispatch
from jaxbn.backends.contract import statistics_type
from jaxbn.core import calculus, checks, placement, sync
from jaxbn.core.types import AxisGroups, AxisName, Moments

# The same bound as for a pass over memory: beyond it, sum again about the mean found.
_ACCEPTED_SQUARED_DISTANCE = 16.0


class Centered(NamedTuple):
    """Moments whose mean is kept as center + delta.

    For |mean| >> std the sum does not fit float32; the two parts do. All derivatives
    are in `delta`, so `center` may be any constant.

    Attributes:
        count: number of values; a Python int where it is known without looking.
        center: the shape of the feature axes, in the statistics type.
        delta: same.
        m2: sum of squared distances to the mean, same shape, real.
    """

    count: int | Array
    center: Array
    delta: Array
    m2: Array


def moments(
    x: Array,
    *,
    axis: int | Sequence[int] = -1,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_groups: AxisGroups | None = None,
    shift: Array | None = None,
    implementation: str | None = None,
) -> Moments:
    """Count, mean and sum of squared distances of each channel of `x`.

    For every channel c, over all positions i that are not on a feature axis and where
    `where` is true,

        count_c = sum_i 1,   mean_c = sum_i x_ic / count_c,
        m2_c = sum_i |x_ic - mean_c|^2,

    summed about a center near the mean, so that nothing cancels (Chan, Golub and
    LeVeque, Algorithms for computing the sample variance, 1983).

    Args:
        x: a batch of any rank; float16, bfloat16, float32, float64 or complex.
        axis: the feature axis, or a tuple of them.
        where: boolean mask that broadcasts to the shape of `x`. Default: all true.
        axis_name: mesh or vmap axes to share statistics over. Default: none.
        axis_groups: positions along `axis_name` that share, for example
            [[0, 1], [2, 3]]. Default: all of them.
        shift: a guess of the mean, the shape of the feature axes; the same on all
            members of `axis_name`. A good one saves a pass over `x`, a bad one costs
            no accuracy. Default: zero.
        implementation: "xla", "native", or None for the fastest that is right.

    Returns:
        Moments of the shape of the feature axes, in float32, or float64 for float64
        `x`. Channels without a value have count, mean and m2 of zero.

    Raises:
        ValueError: if a shape, `axis`, `axis_name` or `axis_groups` is invalid.
        TypeError: if `x` is an integer array or `where` is not boolean.

    Example:
        >>> jaxbn.moments(jnp.array([[1.0], [3.0]])).m2
        Array([2.], dtype=float32)
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    where = checks.mask(where, x)
    shift = checks.vector("shift", shift, x, axes)
    members = group_of(axis_name, axis_groups)
    name = dispatch.choose(implementation, x)
    local = local_moments(x, shift, where, axes=axes, implementation=name)
    batch = shared_moments(local, shift, members)
    return public(batch)


def group_of(axis_name: AxisName | None, axis_groups: AxisGroups | None):
    """Who shares statistics with this device, or None for nobody."""
    groups = checks.groups(axis_groups, axis_name)
    if axis_name is None:
        return None
    size = checks.axis_size(axis_name)
    name = axis_name if isinstance(axis_name, str) else tuple(axis_name)
    return sync.Members(name, size, groups)


def public(batch: Centered) -> Moments:
    """Moments with the mean in one part."""
    count = jnp.asarray(batch.count, batch.m2.dtype)
    count = placement.like(jnp.broadcast_to(count, batch.m2.shape), batch.m2)
    mean = jnp.where(count > 0, batch.center + batch.delta, 0)
    return Moments(count, mean, batch.m2)


def local_moments(
    x: Array,
    shift: Array | None,
    where: Array | None,
    *,
    axes: tuple[int, ...],
    implementation: str,
    floor: float = 0.0,
) -> Centered:
    """The moments of the values on this device."""
    if jnp.iscomplexobj(x):
        guesses = (None, None) if shift is None else (shift.real, shift.imag)
        params = {"axes": axes, "implementation": implementation, "floor": floor}
        real, imag = (
            local_moments(part, guess, where, **params)
            for part, guess in zip((x.real, x.imag), guesses, strict=True)
        )
        center = lax.complex(real.center, imag.center)
        delta = lax.complex(real.delta, imag.delta)
        return Centered(real.count, center, delta, real.m2 + imag.m2)
    count = _count(x, where, axes)
    shape = tuple(x.shape[a] for a in axes)
    wide = statistics_type(x)
    if shift is None:
        shift = placement.like(jnp.zeros(shape, wide), x, axes)
    known = placement.like(jnp.broadcast_to(jnp.asarray(count, wide), shape), x, axes)
    center, delta, m2 = calculus.moments(
        x,
        lax.stop_gradient(shift),
        known,
        where,
        axes=axes,
        floor=floor,
        implementation=implementation,
    )
    return Centered(count, lax.stop_gradient(center), delta, m2)


def known_count(x, where, members, axes) -> int | None:
    """The smallest number of values per channel in a group, if shapes alone tell it."""
    if where is not None:
        return None
    size = 1 if members is None else min(sync.sizes(members))
    return size * math.prod(n for i, n in enumerate(x.shape) if i not in axes)


def _count(x: Array, where: Array | None, axes: tuple[int, ...]) -> int | Array:
    sizes = [n for i, n in enumerate(x.shape) if i not in axes]
    if where is None:
        return math.prod(sizes)
    shared = [n for i, n in enumerate(x.shape) if i not in axes and where.shape[i] == 1]
    other = tuple(i for i in range(x.ndim) if i not in axes)
    wide = statistics_type(x)
    seen = where.astype(wide).sum(other) * math.prod(shared)
    seen = jnp.broadcast_to(seen, tuple(x.shape[a] for a in axes))
    return placement.like(seen, x, axes)


def shared_moments(
    local: Centered,
    shift: Array | None,
    members: sync.Members | None,
    *,
    floor: float = 0.0,
) -> Centered:
    """Merges the moments of all members, weighted by their counts.

    One all-reduce of sums about `shift`, which is the same on all members; only where
    that turns out to be far from the common mean, a second one about that mean.
    """
    if members is None:
        return local
    if shift is None:  # not zeros_like, whose type would vary as the local center does
        shift = jnp.zeros(local.center.shape, local.center.dtype)
        shift = placement.like(shift, local.center)
    shift = lax.stop_gradient(shift)
    known = isinstance(local.count, int)
    here = jnp.asarray(local.count, local.m2.dtype)
    sizes = jnp.asarray(sync.sizes(members), local.m2.dtype)

    def about(center):
        distance = (local.center - center) + local.delta
        sums = [here * distance, local.m2 + here * _squared(distance)]
        sums = sums if known else [*sums, here]
        packed = jnp.stack(jnp.broadcast_arrays(*sums))
        first, second, *counts = jnp.moveaxis(
            sync.total_by_group(packed, members), 1, 0
        )
        column = (-1, *[1] * (first.ndim - 1))
        count = (here * sizes).reshape(column) if known else counts[0].real
        delta = first / jnp.maximum(count, 1)
        m2 = jnp.maximum(second.real - count * _squared(delta), 0)
        return delta, m2, jnp.broadcast_to(count, m2.shape)

    # All groups decide together: the branch contains a collective.
    found = delta, m2, count = about(shift)
    near = count * _squared(delta) <= _ACCEPTED_SQUARED_DISTANCE * (m2 + count * floor)
    settled = jnp.all(near | ~jnp.isfinite(delta))
    nearer = lax.stop_gradient(shift + sync.own(delta, members))
    result = sync.unless(settled, found, lambda: about(nearer), members)
    delta, m2, count = (sync.own(rows, members) for rows in result)
    if known and len(set(sync.sizes(members))) == 1:
        count = local.count * sync.sizes(members)[0]
    return Centered(count, jnp.where(settled, shift, nearer), delta, m2)


def _squared(values: Array) -> Array:
    if jnp.iscomplexobj(values):
        return jnp.square(values.real) + jnp.square(values.imag)
    return jnp.square(values)


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of both parts together.

    With d = mean2 - mean1 and n = n1 + n2 (Chan, Golub and LeVeque 1983):

        mean = mean1 + d n2 / n,   m2 = m2_1 + m2_2 + |d|^2 n1 n2 / n.

    Associative and commutative up to rounding; a part without values changes nothing.

    Args:
        first: moments of any shape.
        second: moments of the same shape.

    Returns:
        Moments of that shape.

    Example:
        >>> x = jnp.arange(6.0).reshape(6, 1)
        >>> jaxbn.merge(jaxbn.moments(x[:2]), jaxbn.moments(x[2:])).mean
        Array([2.5], dtype=float32)
    """
    count = first.count + second.count
    share = second.count / jnp.maximum(count, 1)
    distance = second.mean - first.mean
    mean = jnp.where(first.count > 0, first.mean + distance * share, second.mean)
    between = _squared(distance) * first.count * share
    return Moments(count, mean, first.m2 + second.m2 + between)
