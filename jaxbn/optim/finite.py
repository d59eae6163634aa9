"""Skips updates that are not finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.core import sync, trees
from jaxbn.core.moments import group_of
from jaxbn.core.types import AxisName


def keep_finite(
    new: Any, old: Any, *, watch: Any = None, axis_name: AxisName | None = None
) -> tuple[Any, Array]:
    """`new` if it is finite, else `old`: parameters, optimizer and statistics together.

    An infinity that was there before the step does not count: optimizers keep some, as
    the best loss so far of `optax.contrib.reduce_on_plateau`.

    Args:
        new: what a training step computed: any tree, for example (params, optimizer
            state, batch statistics).
        old: the same tree before the step.
        watch: a tree to look at instead of `new`, for example (loss, gradients).
        axis_name: mesh or vmap axes that decide together.

    Returns:
        The chosen tree, and whether it is the new one, a boolean scalar.

    Raises:
        TypeError: if a leaf is no array.
        ValueError: if `old` has another structure or shape than `new`.

    Example:
        >>> new, old = {"w": jnp.full(1, jnp.nan)}, {"w": jnp.ones(1)}
        >>> jaxbn.optim.keep_finite(new, old)
        ({'w': Array([1.], dtype=float32)}, Array(False, dtype=bool))
    """
    new, old = trees.of_arrays("new", new), trees.of_arrays("old", old)
    _same("old", old, new)
    watched = jax.tree.leaves(new if watch is None else trees.of_arrays("watch", watch))
    before = jax.tree.leaves(old) if watch is None else [None] * len(watched)
    pairs = zip(watched, before, strict=True)
    # Not a sum, which overflows from 2^31 bad values on.
    bad = (_spoilt(v, b) for v, b in pairs if jnp.issubdtype(v.dtype, jnp.inexact))
    here = functools.reduce(jnp.logical_or, bad, jnp.zeros((), bool))
    members = group_of(axis_name, None)
    (anywhere,) = sync.totals((here.astype(jnp.int32),), members)
    finite = anywhere == 0
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), finite


def _spoilt(value: Array, before: Array | None) -> Array:
    """Tells whether there is NaN, or an infinity that was not there before."""
    bad = ~jnp.isfinite(value)
    if before is not None:
        bad &= value != before.astype(value.dtype)
    return jnp.any(bad)


def _same(name: str, tree: Any, new: Any) -> None:
    """Refuses a tree that is not as the new one, leaf by leaf."""
    hint = "Pass what the step started from."
    trees.same_structure(name, tree, "new", new, hint=hint)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(new), strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"`{name}` must have the shapes of `new`, got {a.shape} for {b.shape}. "
                f"{hint}"
            )
