"""Checks of arrays and axes, and the messages about them.

Values are looked at where they are known, see `jaxbn.core.values`: not under `jax.jit`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import statistics_type as statistics_type
from jaxbn.core import options, placement, values
from jaxbn.core.records import MOMENTS, record
from jaxbn.core.types import AxisGroups, AxisName, BatchNormState, Moments
from jaxbn.core.values import shown


def array(x: Any, name: str = "x") -> Array:
    """`x` as an array of a type that has a mean and a variance."""
    x = values.array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.inexact) or jnp.finfo(x.dtype).bits < 16:
        raise TypeError(
            f"`{name}` must be complex or floating point of 16 bits or more, got "
            f"{x.dtype}. Convert it with `{name}.astype(jnp.float32)`."
        )
    return x


def feature_axes(
    x: Array, axis: Any, *, name: str = "axis", of: str = "x"
) -> tuple[int, ...]:
    """The feature axes, non-negative and sorted."""
    options.static(name, axis)
    given = [values.integer(a) for a in values.several(axis)]
    places = [a % x.ndim for a in given if a is not None and -x.ndim <= a < x.ndim]
    if not given or len(places) < len(given):
        raise ValueError(
            f"`{name}` must be in [{-x.ndim}, {x.ndim}) for `{of}` with shape "
            f"{x.shape}, got {shown(axis)}. It names the feature axis or axes."
        )
    axes = tuple(sorted(set(places)))
    if len(axes) != len(given):
        raise ValueError(
            f"`{name}` must name each axis once, got {shown(axis)} for `{of}` with "
            f"shape {x.shape}. Remove the repeated one."
        )
    return axes


def one_axis(x: Array, axis: Any, *, name: str = "axis", of: str = "x") -> int:
    """The feature axis, where there can be one only."""
    axes = feature_axes(x, axis, name=name, of=of)
    if len(axes) != 1:
        raise ValueError(
            f"`{name}` must be one axis, got {shown(axis)}. Join the feature axes with "
            "`reshape`."
        )
    return axes[0]


def one_feature_axis(x: Array, axis: Any) -> int:
    """The feature axis, not the first one, which lists the examples."""
    feature = one_axis(x, axis)
    if feature == 0:
        raise ValueError(
            f"`axis` must not be the first axis of `x` with shape {x.shape}, got "
            f"{shown(axis)}. The first axis lists the examples; move the features "
            "behind it."
        )
    return feature


def vector(name: str, given: Any, x: Array, axes: tuple[int, ...]) -> Any:
    """A per-channel argument in the statistics type and placed so, or None."""
    if given is None:
        return None
    given = numbers(name, given, x)
    want = tuple(x.shape[a] for a in axes)
    if given.shape != want:
        place = axes[0] if len(axes) == 1 else axes
        raise ValueError(
            f"`{name}` must have shape {want} to match axis {place} of `x` with shape "
            f"{x.shape}, got {given.shape}. Reshape it, or set `axis` to the feature "
            "axis."
        )
    wide = statistics_type(x if jnp.iscomplexobj(given) else x.real)
    return placement.like(given.astype(wide), x, axes)


def numbers(name: str, given: Any, x: Array, *, of: str = "x") -> Array:
    """An array of numbers, complex ones for complex `x` only."""
    given = values.array(name, given)
    if not jnp.issubdtype(given.dtype, jnp.number):
        raise TypeError(
            f"`{name}` must be numbers, got {given.dtype}. Convert it with "
            "`.astype(x.dtype)`."
        )
    if jnp.iscomplexobj(given) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"`{name}` must be real for real `{of}`, got {given.dtype} with `{of}` of "
            f"type {x.dtype}. Take its real part, or make `{of}` complex."
        )
    return given


def statistics(given: Any, x: Array, axes: tuple[int, ...]) -> Any:
    """The fields of a state that fits `x` in the statistics type, without gradient."""
    complex_mean("state", given, "`x`", x)
    fields = given._asdict().items()
    wide = (vector(f"state.{k}", v, x, axes) for k, v in fields)
    return lax.stop_gradient(type(given)(*wide))


def complex_mean(name: str, given: Any, other: str, like: Array) -> None:
    """Refuses a real mean for complex numbers."""
    if jnp.iscomplexobj(like) and not jnp.iscomplexobj(given.mean):
        raise TypeError(
            f"`{name}.mean` must be complex for complex {other}, got "
            f"{given.mean.dtype}. Create it with "
            "`jaxbn.init_state(num_features, dtype=x.dtype)`."
        )


def moments_of(
    state: BatchNormState,
    given: Any,
    *,
    name: str = "moments",
    of: str = "state",
) -> Moments:
    """Moments that fit a state, which is checked already."""
    given = same_shape(name, given, of, state)
    complex_mean(of, state, "moments", given.mean)
    return given


def same_shape(name: str, given: Any, other: str, like: Any) -> Moments:
    """Moments of the shape of other statistics."""
    given = record(name, given, MOMENTS)
    if given.mean.shape != like.mean.shape:
        raise ValueError(
            f"`{name}` must have the shape {like.mean.shape} of `{other}`, got "
            f"{given.mean.shape}. Compute them over the same feature axes."
        )
    return given


def residual(given: Any, x: Array) -> Any:
    """The array added after normalization, in the type of `x`."""
    if given is None:
        return None
    given = numbers("residual", given, x)
    if given.shape != x.shape:
        raise ValueError(
            f"`residual` must have the shape {x.shape} of `x`, got {given.shape}. "
            "Project or broadcast it first."
        )
    return placement.like(given.astype(x.dtype), x)


def axis_names(axis_name: Any) -> AxisName | None:
    """A name, a tuple of names, or None for no axis at all."""
    names = values.several(axis_name)
    if axis_name is None or (not names and isinstance(axis_name, Sequence)):
        return None
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`axis_name` must be a name or a tuple of names, got {shown(axis_name)}. "
            "Pass the name given to `jax.vmap`, `jax.pmap` or the mesh."
        )
    return axis_name if isinstance(axis_name, str) else names


def groups(value: AxisGroups | None, axis_name: AxisName | None):
    """`axis_groups` as tuples that partition the positions of `axis_name`."""
    if value is None:
        return None
    if axis_name is None:
        raise ValueError(
            f"`axis_groups` must come with `axis_name`, got {shown(value)} without "
            "one. Name the axis whose positions are grouped."
        )
    fixed, size = options.groups("axis_groups", value), axis_size(axis_name)
    if sorted(i for group in fixed for i in group) != list(range(size)):
        raise ValueError(
            f"`axis_groups` must contain each position of 0 to {size - 1} of axis "
            f"{axis_name!r} once, got {shown(value)}. List every device in one group."
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
