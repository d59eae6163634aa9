"""Shares statistics between devices. The only collectives of the package."""

import functools
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
        size: the number of positions along them, asked for when the layer is called:
            a derivative rule may run where the axis is no longer bound.
        groups: a partition of the positions, or None for one group.
    """

    axis_name: AxisName
    size: int
    groups: Groups | None = None


def totals(vectors: tuple[Array, ...], members: Members | None) -> tuple[Array, ...]:
    """The sums of some vectors over the members of this group, in one all-reduce."""
    if members is None:
        return vectors
    return tuple(own(total_by_group(jnp.stack(vectors), members), members))


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


def unless(done: Array, found, again, members: Members):
    """`found` if `done`, else `again()`, whose collectives run only then.

    A derivative rule of a function under `vmap` may run where the axis is no longer
    bound, for example in `jax.grad(jax.jit(jax.vmap(layer, axis_name="i")))`. A branch
    could not name the axis there, and a collective is a sum in memory: it always runs.
    """
    try:
        lax.psum(1, members.axis_name)
    except NameError:
        return tuple(map(functools.partial(jnp.where, done), found, again()))
    return lax.cond(done, lambda: found, again)


def common(values: Array, members: Members | None) -> Array:
    """`values` if they are equal on all members by their type, else their average."""
    names = () if members is None else members.axis_name
    names = {names} if isinstance(names, str) else set(names)
    if members is None or not names & varying_axes(values):
        return values
    return own(
        total_by_group(values, members) / _column(sizes(members), values), members
    )


def _column(by_group: list[int], like: Array) -> Array:
    return jnp.asarray(by_group, like.real.dtype).reshape(-1, *[1] * like.ndim)


def _group(members: Members) -> Array:
    """The number of this position's group."""
    groups = members.groups or ()
    table = np.empty(sum(map(len, groups)), np.int32)
    for number, group in enumerate(groups):
        table[list(group)] = number
    return jnp.asarray(table)[lax.axis_index(members.axis_name)]
