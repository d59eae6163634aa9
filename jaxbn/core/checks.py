"""Argument checks and every message about the arguments of the public functions."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxbn.backends.contract import statistics_type as statistics_type
from jaxbn.core import placement
from jaxbn.core.types import Activation, AxisGroups, AxisName, BatchNormState

_INTEGER = (int, np.integer)
_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "leaky_relu": jax.nn.leaky_relu,
}


def array(x: Array) -> Array:
    """`x` as an array of a type that has a mean and a variance."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact) or jnp.finfo(x.dtype).bits < 16:
        raise TypeError(
            f"`x` must be complex or floating point of 16 bits or more, got {x.dtype}. "
            "Convert it with `x.astype(jnp.float32)`."
        )
    return x


def feature_axes(x: Array, axis: int | Sequence[int]) -> tuple[int, ...]:
    """The feature axes, non-negative and sorted."""
    given = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    valid = all(isinstance(a, _INTEGER) and -x.ndim <= a < x.ndim for a in given)
    if not given or not valid:
        raise ValueError(
            f"`axis` must be in [{-x.ndim}, {x.ndim}) for `x` with shape {x.shape}, "
            f"got {axis!r}. It names the feature axis or axes."
        )
    axes = sorted({int(a) % x.ndim for a in given})
    if len(axes) != len(given):
        raise ValueError(
            f"`axis` must name each axis once, got {axis!r} for `x` with shape "
            f"{x.shape}. Remove the repeated one."
        )
    return tuple(axes)


def vector(name: str, values: Array | None, x: Array, axes: tuple[int, ...]) -> Any:
    """A per-channel argument in the statistics type and placed so, or None."""
    if values is None:
        return None
    values = jnp.asarray(values)
    want = tuple(x.shape[a] for a in axes)
    if values.shape != want:
        place = axes[0] if len(axes) == 1 else axes
        raise ValueError(
            f"`{name}` must have shape {want} to match axis {place} of `x` with shape "
            f"{x.shape}, got {values.shape}. Reshape it, or set `axis` to the feature "
            "axis."
        )
    if jnp.iscomplexobj(values) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"`{name}` must be real for real `x`, got {values.dtype} with `x` of type "
            f"{x.dtype}. Take its real part, or make `x` complex."
        )
    wide = statistics_type(x.real)
    if jnp.iscomplexobj(values):
        wide = jnp.promote_types(wide, jnp.complex64)
    return placement.like(values.astype(wide), x, axes)


def state(values: BatchNormState, x: Array, axes: tuple[int, ...]) -> BatchNormState:
    """Running statistics that fit `x`, in the statistics type."""
    if not isinstance(values, BatchNormState):
        raise TypeError(
            f"`state` must be a BatchNormState, got {type(values).__name__}. "
            "Create one with `jaxbn.init_state(num_features)`."
        )
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(values.mean):
        raise TypeError(
            f"`state.mean` must be complex for complex `x`, got {values.mean.dtype}. "
            "Create it with `jaxbn.init_state(num_features, dtype=x.dtype)`."
        )
    mean = vector("state.mean", values.mean, x, axes)
    return BatchNormState(mean, vector("state.var", values.var, x, axes), values.count)


def mask(where: Array | None, x: Array) -> Any:
    """A boolean array of the rank of `x` whose sizes are 1 or those of `x`."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(
            f"`where` must be boolean, got {where.dtype}. Write `where != 0`."
        )
    padded = (1,) * (x.ndim - where.ndim) + where.shape
    fits = where.ndim <= x.ndim and all(
        m in (1, n) for m, n in zip(padded, x.shape, strict=True)
    )
    if not fits:
        hint = "Add axes of size 1 until it broadcasts"
        if where.shape == x.shape[: where.ndim]:
            hint = (
                f"Write `where.reshape({where.shape + (1,) * (x.ndim - where.ndim)})`"
            )
        raise ValueError(
            f"`where` must broadcast to the shape {x.shape} of `x`, got {where.shape}. "
            f"{hint}."
        )
    return placement.mask(where.reshape(padded), x)


def residual(values: Array | None, x: Array) -> Any:
    """The array added after normalization, in the type of `x`."""
    if values is None:
        return None
    values = jnp.asarray(values)
    if values.shape != x.shape:
        raise ValueError(
            f"`residual` must have the shape {x.shape} of `x`, got {values.shape}. "
            "Project or broadcast it first."
        )
    return placement.like(values.astype(x.dtype), x)


def activation(value: Activation):
    """The activation as a function, or None."""
    if value is None or callable(value):
        return value
    if value in _ACTIVATIONS:
        return _ACTIVATIONS[value]
    known = ", ".join(map(repr, _ACTIVATIONS))
    raise ValueError(
        f"`activation` must be one of {known}, a function or None, got {value!r}. "
        "Pass the function itself, for example `jax.nn.elu`."
    )


def is_named(function: Any) -> bool:
    """Whether an activation is none, or one of those with a name."""
    return function is None or any(function is known for known in _ACTIVATIONS.values())


def epsilon(value: float) -> float:
    try:
        number = float(value)
    except TypeError as error:
        raise TypeError(
            f"`epsilon` must be a Python number, got {value!r}. It is a constant of "
            "the compiled program."
        ) from error
    if not 0 < number < math.inf:
        raise ValueError(
            f"`epsilon` must be positive and finite, got {value!r}. "
            "The usual value is 1e-5."
        )
    return number


def momentum(value, *, debias: bool):
    """The weight of the old value; traced values are trusted."""
    if value is None or isinstance(value, Array):
        return value
    inside = 0 <= value < 1 if debias else 0 <= value <= 1
    if not inside:
        raise ValueError(
            f"`momentum` must be in [0, 1), got {value!r}. It is the weight of the old "
            "value: PyTorch's `momentum` is 1 minus it, and None gives the cumulative "
            "average."
        )
    return float(value)


def groups(value: AxisGroups | None, axis_name: AxisName | None):
    """`axis_groups` as tuples that partition the positions of `axis_name`."""
    if value is None:
        return None
    if axis_name is None:
        raise ValueError(
            f"`axis_groups` must come with `axis_name`, got {value!r} without one. "
            "Name the axis whose positions are grouped."
        )
    fixed = tuple(tuple(int(i) for i in group) for group in value)
    size = axis_size(axis_name)
    if sorted(i for group in fixed for i in group) != list(range(size)):
        raise ValueError(
            f"`axis_groups` must contain each position of 0 to {size - 1} of axis "
            f"{axis_name!r} once, got {value!r}. List every device in one group."
        )
    return fixed


def axis_size(axis_name: AxisName) -> int:
    """The number of members of a bound axis, or of several."""
    try:
        return lax.psum(1, axis_name)
    except NameError as error:
        raise ValueError(
            f"`axis_name` must be bound here, got {axis_name!r}. Call inside "
            "`jax.vmap(..., axis_name=...)`, `jax.pmap` or `jax.shard_map`, or leave "
            "it out: under plain `jax.jit` statistics already cover the global batch."
        ) from error


def enough_values(count: int | None, *, unbiased: bool) -> None:
    if unbiased and count == 1:
        raise ValueError(
            "`unbiased` must be False for one value per channel, got True. The "
            "unbiased variance divides by their number minus one."
        )


def same_shape(values: BatchNormState, moments) -> None:
    if not isinstance(values, BatchNormState):
        raise TypeError(
            f"`state` must be a BatchNormState, got {type(values).__name__}. "
            "Create one with `jaxbn.init_state(num_features)`."
        )
    if values.mean.shape != moments.mean.shape:
        raise ValueError(
            f"`moments` must have the shape {values.mean.shape} of `state`, got "
            f"{moments.mean.shape}. Compute them over the same feature axes."
        )
    if jnp.iscomplexobj(moments.mean) and not jnp.iscomplexobj(values.mean):
        raise TypeError(
            f"`state.mean` must be complex for complex moments, got "
            f"{values.mean.dtype}. Create it with "
            "`jaxbn.init_state(num_features, dtype=x.dtype)`."
        )


def share(name: str, value: float | Array) -> None:
    """Refuses numbers outside [0, 1]; JAX arrays may be traced and are not read."""
    if isinstance(value, Array):
        return
    if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
        raise ValueError(
            f"`{name}` must be in [0, 1], got {value!r}. It is the weight of the "
            "example's own statistics; 0 is ordinary evaluation."
        )
