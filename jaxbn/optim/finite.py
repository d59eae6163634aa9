"""When to step: training that leaves out what is not finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.core import sync
from jaxbn.core.moments import group_of
from jaxbn.core.types import AxisName


def keep_finite(
    new: Any, old: Any, *, watch: Any = None, axis_name: AxisName | None = None
) -> tuple[Any, Array]:
    """`new` if it is finite, else `old`: parameters, optimizer and statistics together.

    Args:
        new: what a training step computed: any tree, for example (params, optimizer
            state, batch statistics).
        old: the same tree before the step.
        watch: a tree to look at instead of `new`, for example (loss, gradients).
        axis_name: mesh or vmap axes that decide together.

    Returns:
        The chosen tree, and whether it is the new one, a boolean scalar.

    Example:
        >>> new, old = {"w": jnp.full(1, jnp.nan)}, {"w": jnp.ones(1)}
        >>> jaxbn.optim.keep_finite(new, old)
        ({'w': Array([1.], dtype=float32)}, Array(False, dtype=bool))
    """
    leaves = jax.tree.leaves(new if watch is None else watch)
    # Not a sum, which overflows from 2^31 bad values on.
    bad = (jnp.any(~jnp.isfinite(v)) for v in leaves if _can_overflow(v))
    here = functools.reduce(jnp.logical_or, bad, jnp.zeros((), bool))
    members = group_of(axis_name, None)
    (anywhere,) = sync.totals((here.astype(jnp.int32),), members)
    finite = anywhere == 0
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), finite


def _can_overflow(value: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(value).dtype, jnp.inexact)
