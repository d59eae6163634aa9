"""Shardings as part of types: how arrays lie on mesh axes of type Explicit.

There an array has one sharding when traced, and `jnp.where` and `lax.cond` take no two
that differ. So everything about a channel lies as the channels of `x` do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbn.backends.contract import is_explicit


def like(values: Array, other: Array, axes: Sequence[int] | None = None) -> Array:
    """`values` placed as `other` is or, given `axes`, as those axes of it are."""
    spec = jax.typeof(other).sharding.spec
    axes = range(other.ndim) if axes is None else axes
    return _placed(values, other, [spec[axis] for axis in axes])


def alike(tree: Any) -> Any:
    """Arrays of one shape, all placed as the first of them that has a place."""
    placed = list(filter(is_explicit, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: like(leaf, placed[0]), tree) if placed else tree


def leading(values: Array, other: Array, axis: int) -> Array:
    """`values` with its first axis placed as this axis of `other` is."""
    rest = jax.typeof(values).sharding.spec[1:]
    return _placed(values, other, [jax.typeof(other).sharding.spec[axis], *rest])


def mask(where: Array, x: Array) -> Array:
    """A mask of the rank of `x` placed as it is, but for axes of size 1."""
    spec = jax.typeof(x).sharding.spec
    return _placed(
        where,
        x,
        [s if n != 1 else None for s, n in zip(spec, where.shape, strict=True)],
    )


def automatic(function: Callable, x: Array, *out: Any) -> Callable:
    """`function` with automatic mesh axes where `x` has explicit ones.

    For reshapes into groups and look-ups, whose types would need a sharding of their
    own. Its results are placed as the arrays `out` are.
    """
    mesh = jax.typeof(x).sharding.mesh
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    if not explicit:
        return function

    def placed(array):
        spec = jax.typeof(array).sharding.spec
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = tuple(jax.tree.map(placed, out))
    if len(out) == 1:
        (shardings,) = shardings
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=shardings)


def _placed(values: Array, other: Array, spec: Sequence) -> Array:
    if not is_explicit(other):
        return values
    mesh = jax.typeof(other).sharding.mesh
    known = jax.typeof(values).sharding
    anywhere = known.mesh.empty and not isinstance(values, Tracer)
    if anywhere and jax.sharding.get_abstract_mesh().empty:
        return values  # outside of `jax.set_mesh`, where JAX places it at once
    wanted = NamedSharding(mesh, PartitionSpec(*spec))
    if known == wanted:
        return values
    return jax.sharding.reshard(values, wanted)
