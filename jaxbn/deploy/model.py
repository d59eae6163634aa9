"""The statistics of a whole model, for recalibration and adaptation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.core import options
from jaxbn.core.moments import moments
from jaxbn.core.pool import pool
from jaxbn.core.types import BatchNormState, Moments


class Model(NamedTuple):
    """The statistics of a model, apart from the model.

    Attributes:
        states: running statistics of each layer, by its path, "block/norm".
        collect: `collect(states, batch)` returns the moments of what each layer sees in
            `batch`, by path, when the model runs with `states`; of a layer that members
            of a `vmap` share, what all of them see.
        replace: `replace(states)` returns the model with other statistics.
    """

    states: dict[str, BatchNormState]
    collect: Callable[[dict[str, BatchNormState], Any], dict[str, Moments]]
    replace: Callable[[dict[str, BatchNormState]], Any]


def run(module: Any, batch: Any) -> Any:
    """Calls a model, unless told otherwise."""
    return module(batch)


def callable_model(call: Any) -> Any:
    """The function that calls a model."""
    hint = "It runs the model, as `lambda model, batch: model(batch)`."
    return options.function("call", call, hint=hint)


def is_norm(module: Any) -> bool:
    """Tells whether a module is a batch-normalization layer of Flax or jaxbn.

    Not one of `jaxbn.variants` that keeps several statistics or sigma: it stays alone.
    """
    return has_mode(module) and getattr(module, "has_moments", True)


def has_mode(module: Any) -> bool:
    """Tells whether a module is such a layer or one of any of the variants."""
    return hasattr(module, "use_running_average") and hasattr(module, "axis")


def moments_of_call(
    module: Any, x: Array, *_, mask=None, where=None, weights=None, **__
) -> Moments:
    """The moments of `x`, given the arguments of a call of such a layer."""
    x = jnp.asarray(x)
    # The layers take integers; their statistics are float32 then.
    x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)
    where = mask if where is None else where
    where = None if where is None else jnp.asarray(where).astype(bool)
    return moments(x, axis=module.axis, where=where, weights=weights)


@jax.custom_batching.custom_vmap
def over_members(batch: Moments, mean: Array) -> Moments:
    """Merges moments over `vmap` axes whose members share a layer.

    Args:
        batch: the moments of what the layer sees.
        mean: its running mean; members share the layer where it has no such axis.
    """
    del mean
    return batch


@over_members.def_vmap
def _over_axis(size, axes, batch, mean):
    along, stacked = axes
    if not stacked and any(along):
        sizes = ((size, *v.shape[here:]) for v, here in zip(batch, along, strict=True))
        batch = pool(Moments(*map(jnp.broadcast_to, batch, sizes)))
        along = jax.tree.map(lambda here: False, along)
    return over_members(batch, mean), along


def count_of(tree: Mapping[str, Any], like: Array) -> Array:
    """The number of updates in a layer's statistics; zero if it is not stored."""
    return jnp.broadcast_to(jnp.asarray(tree.get("count", 0), like.dtype), like.shape)


def written(old, new) -> Array:
    """The new leaf in the shape and type of the old one."""
    if new is None:
        return old
    new = new if jnp.ndim(new) == jnp.ndim(old) else jnp.max(new)
    return jnp.asarray(new, jnp.asarray(old).dtype)


def no_values(state: BatchNormState) -> Moments:
    """The moments of a layer that was not called."""
    return Moments(*(jnp.zeros_like(leaf) for leaf in (state.var, *state[:2])))


def require_some(states: dict[str, BatchNormState], name: str) -> None:
    """Checks that a model has batch normalization."""
    if not states:
        raise ValueError(
            f"`{name}` must contain running statistics, got none. Pass a model with "
            "batch normalization, and its `batch_stats`."
        )
