"""Scale and bias with axes of the batch, as of conditional batch normalization.

Row axes of `x` that scale or bias has join the feature axes where x is multiplied: the
passes over `x` stay the same, with more and shorter channels. Statistics do not change.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.core import checks, placement


class Affine(NamedTuple):
    """Scale and bias, of one shape unless absent, with the axes of `x` they have."""

    scale: Array | None
    bias: Array | None
    axes: tuple[int, ...]


def affine(scale: Any, bias: Any, x: Array, axes: tuple[int, ...]) -> Affine:
    """Checks scale and bias; broadcasts them to the axes of `x` that either has.

    Args:
        scale, bias: the shape of the feature axes, the same with the first row axes of
            `x` in front, or the rank of `x` with row axes of size 1 or that of `x`.
        x: the input.
        axes: its feature axes.
    """
    names = {"scale": scale, "bias": bias}
    given = {name: _of_rank(name, value, x, axes) for name, value in names.items()}
    sizes = [value.shape for value in given.values() if value is not None]
    rows = {i for shape in sizes for i, n in enumerate(shape) if n != 1}
    wide = tuple(sorted(rows.union(axes)))
    shape = tuple(x.shape[a] for a in wide)

    def broadcast(name):
        value = given[name]
        if value is None:
            return None
        value = value.reshape([value.shape[a] for a in wide])
        return checks.vector(name, jnp.broadcast_to(value, shape), x, wide)

    return Affine(broadcast("scale"), broadcast("bias"), wide)


def widened(
    vectors: Array, x: Array, axes: Sequence[int], wide: Sequence[int]
) -> Array:
    """Broadcasts vectors of the axes `axes` of `x` to the axes `wide`.

    Axes in front of those of the vectors stay there.
    """
    front = vectors.ndim - len(axes)
    shape = (*vectors.shape[:front], *(x.shape[a] for a in wide))
    places = [*range(front), *(front + list(wide).index(a) for a in axes)]
    result = lax.broadcast_in_dim(vectors, shape, places)
    return result if front else placement.like(result, x, wide)


def _of_rank(name: str, given: Any, x: Array, axes: tuple[int, ...]) -> Array | None:
    """The argument with the rank of `x`."""
    if given is None:
        return None
    given = checks.numbers(name, given, x)
    rows = [i for i in range(x.ndim) if i not in axes]
    front = given.ndim - len(axes)
    if given.ndim == x.ndim:
        places = list(range(x.ndim))
    elif 0 < front <= len(rows):
        places = [*rows[:front], *axes]
    else:
        given, places = checks.vector(name, given, x, axes), list(axes)
    order = sorted(range(given.ndim), key=places.__getitem__)
    given = lax.expand_dims(
        given.transpose(order), [i for i in range(x.ndim) if i not in places]
    )
    fits = all(
        n == m or (n == 1 and i in rows)
        for i, (n, m) in enumerate(zip(given.shape, x.shape, strict=True))
    )
    if not fits:
        features = tuple(x.shape[a] for a in axes)
        raise ValueError(
            f"`{name}` must have shape {features}, with axes of the batch in front or "
            f"not, or broadcast to the shape {x.shape} of `x` with all its features, "
            f"got {given.shape}. Reshape it."
        )
    return given
