"""Checks of masks and weights: how much each position of `x` counts."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxbn.backends.contract import statistics_type
from jaxbn.core import placement, values


def mask(where: Any, x: Array, *, name: str = "where") -> Any:
    """A boolean array of the rank of `x` whose sizes are 1 or those of `x`."""
    if where is None:
        return None
    where = values.array(name, where)
    if where.dtype != jnp.bool_:
        raise TypeError(
            f"`{name}` must be boolean, got {where.dtype}. Write `{name} != 0`."
        )
    return _fitted(where, x, name)


def arguments(where: Array | None) -> dict[str, Any]:
    """Names what `counted` returned as an argument of `jaxbn.batch_norm`."""
    is_mask = where is None or where.dtype == jnp.bool_
    return {"where" if is_mask else "weights": where}


def _fitted(where: Array, x: Array, name: str) -> Array:
    """`where` with axes of size 1 in front, placed as `x` is."""
    padded = (1,) * (x.ndim - where.ndim) + where.shape
    fits = where.ndim <= x.ndim and all(
        m in (1, n) for m, n in zip(padded, x.shape, strict=True)
    )
    if not fits:
        hint = "Add axes of size 1 until it broadcasts"
        if where.shape == x.shape[: where.ndim]:
            shape = where.shape + (1,) * (x.ndim - where.ndim)
            hint = f"Write `{name}.reshape({shape})`"
        raise ValueError(
            f"`{name}` must broadcast to the shape {x.shape} of `x`, got "
            f"{where.shape}. {hint}."
        )
    return placement.mask(where.reshape(padded), x)


def counted(where: Any, weights: Any, x: Array) -> Any:
    """The mask, or the weights with zero where it is false, of the rank of `x`."""
    if weights is None:
        return mask(where, x)
    given, weights = weights, values.array("weights", weights)
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(weights.dtype, kind) for kind in kinds):
        raise TypeError(
            f"`weights` must be real numbers, got {weights.dtype}. They say how often "
            "each position counts."
        )
    wide = statistics_type(x.real)
    values.require(
        "weights",
        given,
        lambda w: (w >= 0) & (w <= float(jnp.finfo(wide).max)),
        "finite and not negative",
        hint="Write `jnp.maximum(weights, 0)` where a negative one means none.",
    )
    weights = _fitted(weights, x, "weights").astype(wide)
    where = mask(where, x)
    return weights if where is None else jnp.where(where, weights, 0)
