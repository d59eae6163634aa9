"""Shares statistics between devices. The only collectives of the package."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxbn.core.kernel import share_types, varying_axes
from jaxbn.core.types import AxisName

Groups = tuple[tuple[int, ...], ...]


class Members(NamedTuple):
    """Who shares statistics: the axis, and groups of its positions if not all.

    Attributes:
        axis_name: one or several mesh or vmap axes.
        groups: a partition of the positions along them, or None for one group.
    """

    axis_name: AxisName
    groups: Groups | None = None


def total(values: Array, members: Members | None) -> Array:
    """The sum of `values` over the members of this position's group, in one all-reduce.

    Groups are rows of a larger sum, because `axis_index_groups` exists neither under
    `vmap` nor under `shard_map` with checked types.
    """
    if members is None:
        return values
    # Where types are checked, a sum is over values that vary along the axis.
    values, _ = share_types([values, lax.axis_index(members.axis_name)])
    if members.groups is None:
        return lax.psum(values, members.axis_name)
    group = _own(np.repeat(range(len(members.groups)), _sizes(members.groups)), members)
    row = lax.broadcasted_iota(jnp.int32, (len(members.groups),), 0)
    mine = (row == group).reshape(-1, *[1] * values.ndim)
    placed = jnp.where(mine, values, jnp.zeros((), values.dtype))
    return lax.dynamic_index_in_dim(
        lax.psum(placed, members.axis_name), group, keepdims=False
    )


def common(values: Array, members: Members | None) -> Array:
    """`values` if they are equal on all members by their type, else their average."""
    names = () if members is None else members.axis_name
    names = {names} if isinstance(names, str) else set(names)
    if not names & varying_axes(values):
        return values
    return total(values, members) / size(members)


def size(members: Members | None) -> int | Array:
    """The number of members of this position's group."""
    if members is None:
        return 1
    if members.groups is None:
        return lax.psum(1, members.axis_name)
    sizes = _sizes(members.groups)
    if len(set(sizes)) == 1:
        return sizes[0]
    return _own(np.repeat(sizes, sizes), members)


def _sizes(groups: Groups) -> list[int]:
    return [len(group) for group in groups]


def _own(by_group, members: Members) -> Array:
    """This position's entry of values that are listed group after group."""
    positions = [i for group in members.groups or () for i in group]
    table = np.empty(len(positions), np.int32)
    table[positions] = by_group
    return jnp.asarray(table)[lax.axis_index(members.axis_name)]
