"""Shares statistics between devices. The only collectives of the package."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxbn.backends import merging
from jaxbn.backends.merging import Centered
from jaxbn.core.op import share_types, varying_axes
from jaxbn.core.types import AxisName

Groups = tuple[tuple[int, ...], ...]


class Members(NamedTuple):
    """The devices that share statistics: an axis, and groups of its positions.

    Attributes:
        axis_name: one or several mesh or vmap axes.
        size: the number of positions along them, asked for when the layer is called:
            a derivative rule may run where the axis is no longer bound.
        groups: a partition of the positions, or None for one group.
    """

    axis_name: AxisName
    size: int
    groups: Groups | None = None


def totals(vectors: tuple[Array, ...], members: Members | None) -> tuple[Array, ...]:
    """The sums of some arrays over the members of this group, in one all-reduce."""
    if members is None:
        return vectors
    if len(vectors) == 1:
        return (own(total_by_group(vectors[0], members), members),)
    # Parts of complex numbers are real vectors, beside others that are real.
    parts = [part for v in vectors for part in _parts(v)]
    found = iter(own(total_by_group(jnp.stack(parts), members), members))
    pairs = ([next(found) for _ in _parts(v)] for v in vectors)
    return tuple(lax.complex(*pair) if len(pair) == 2 else pair[0] for pair in pairs)


def _parts(vector: Array) -> list[Array]:
    return [vector.real, vector.imag] if jnp.iscomplexobj(vector) else [vector]


def cast_together(vectors: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
    """Casts vectors to the type of `x` as one: one all-reduce sums their cotangents."""
    if not varying_axes(x):
        return vectors
    return tuple(share_types([jnp.stack(vectors), x])[0])


def total_by_group(values: Array, members: Members) -> Array:
    """The sums of all groups, known everywhere: a leading axis with a row per group.

    Groups are rows of one larger sum, because `axis_index_groups` exists neither under
    `vmap` nor under `shard_map` with checked types.
    """
    # Where types are checked, a sum is over values that vary along the axis.
    values, _ = share_types([values, lax.axis_index(members.axis_name)])
    if members.groups is None:
        return lax.psum(values, members.axis_name)[None]
    row = lax.broadcasted_iota(jnp.int32, (len(members.groups),), 0)
    mine = (row == _group(members)).reshape(-1, *[1] * values.ndim)
    placed = jnp.where(mine, values, jnp.zeros((), values.dtype))
    return lax.psum(placed, members.axis_name)


def own(by_group: Array, members: Members) -> Array:
    """The row of this position's group."""
    if members.groups is None:
        return by_group[0]
    return lax.dynamic_index_in_dim(by_group, _group(members), keepdims=False)


def sizes(members: Members) -> list[int]:
    """The number of members of each group."""
    if members.groups is None:
        return [members.size]
    return [len(group) for group in members.groups]


def merged(local: Centered, members: Members) -> Centered:
    """The moments of all members of this group, in one all-reduce."""
    if jnp.iscomplexobj(local.center):
        return _merged_complex(local, members)
    sizes_ = set(sizes(members))
    known = isinstance(local.count, float) and len(sizes_) == 1
    number = min(sizes_) if known else None

    def total(terms):
        return totals((terms,), members)[0]

    return merging.merged(local, total, number, encoded=True)


def _merged_complex(local: Centered, members: Members) -> Centered:
    """The same for complex numbers, a pair of real ones; m2 is of both."""
    both = local._replace(
        center=jnp.stack([local.center.real, local.center.imag]),
        delta=jnp.stack([local.delta.real, local.delta.imag]),
        m2=jnp.stack([local.m2, jnp.zeros_like(local.m2)]),
        unit=jnp.stack([local.unit] * 2),
    )
    found = merged(both, members)
    unit = jnp.maximum(*found.unit)
    m2 = (found.m2 * jnp.square(found.unit / unit[None])).sum(0)
    center, delta = (lax.complex(v[0], v[1]) for v in (found.center, found.delta))
    n = found.count[0] if isinstance(found.count, Array) else found.count
    return Centered(n, center, delta, m2, unit)


def _group(members: Members) -> Array:
    """The number of this position's group."""
    groups = members.groups or ()
    table = np.empty(sum(map(len, groups)), np.int32)
    for number, group in enumerate(groups):
        table[list(group)] = number
    return jnp.asarray(table)[lax.axis_index(members.axis_name)]
