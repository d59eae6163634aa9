"""Checks of the options of the public functions: numbers, switches, names.

Most are constants of the compiled program and may not be traced.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.core.values import (
    integer,
    is_deleted,
    is_function,
    is_single,
    is_traced,
    require,
    several,
    shown,
)

_ARRAYS = (np.number, np.ndarray, Array)


def static(name: str, value: Any) -> None:
    """Refuses values that are only known when the program runs."""
    if is_traced(value):
        raise TypeError(
            f"`{name}` must be a constant of the compiled program, got {shown(value)}. "
            f"Bind it with `functools.partial`, or pass static_argnames={name!r} to "
            "`jax.jit`."
        )


def flag(name: str, value: Any) -> bool:
    """A switch as a Python bool."""
    static(name, value)
    kind = getattr(value, "dtype", type(value))
    if kind in (bool, np.bool_) and is_single(value):
        return bool(value)
    raise TypeError(
        f"`{name}` must be True or False, got {shown(value)}. Pass it by name: "
        f"`{name}=True`."
    )


def whole(name: str, value: Any, *, least: int | None = 1, hint: str) -> int:
    """An integer as Python's.

    Args:
        name, value: of the argument.
        least: the smallest that is right, if there is one.
        hint: what to do, a sentence.
    """
    static(name, value)
    number = integer(value)
    if number is None:
        raise TypeError(f"`{name}` must be an integer, got {shown(value)}. {hint}")
    if least is not None and number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {number}. {hint}")
    return number


def one_of(name: str, value: Any, known: tuple[str, ...], *, hint: str) -> Any:
    """A word out of a list."""
    if not isinstance(value, str) or value not in known:
        *first, last = map(repr, known)
        raise ValueError(
            f"`{name}` must be {', '.join(first)} or {last}, got {shown(value)}. {hint}"
        )
    return value


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """One size, or several, as Python integers.

    Raises:
        TypeError: if one is no integer.
        ValueError: if one is negative.
    """
    static(name, value)
    given = several(value)
    found = tuple(n for n in map(integer, given) if n is not None)
    if len(found) < len(given):
        raise TypeError(
            f"`{name}` must be an integer or a tuple of integers, got {shown(value)}. "
            "It is the size of the feature axis, for example `x.shape[-1]`."
        )
    if any(n < 0 for n in found):
        raise ValueError(
            f"`{name}` must not be negative, got {shown(value)}. It is the size of the "
            "feature axis."
        )
    return found


def inexact(name: str, value: Any) -> Any:
    """A type of floating point or complex numbers, of 16 bits or more."""
    try:
        kind = jnp.dtype(value) if isinstance(value, str | type | np.dtype) else None
    except (TypeError, ValueError):
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.inexact) or kind.itemsize < 2:
        raise TypeError(
            f"`{name}` must be floating point or complex of 16 bits or more, got "
            f"{shown(value)}. Leave it out for float32."
        )
    return kind


def groups(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of groups, each one a list of positions."""
    static(name, value)
    listed = several(value)
    if not any(map(is_single, listed)):
        fixed = tuple(tuple(map(integer, group)) for group in listed)
        if not any(position is None for group in fixed for position in group):
            return fixed  # type: ignore
    raise TypeError(
        f"`{name}` must be a list of lists of integers, got {shown(value)}. For "
        "example [[0, 1], [2, 3]]."
    )


def function(name: str, value: Any, *, hint: str) -> Any:
    """Something that is called, and no class."""
    if not is_function(value):
        raise TypeError(f"`{name}` must be a function, got {shown(value)}. {hint}")
    return value


def words(name: str, value: Any) -> tuple[str, ...]:
    """One word or several."""
    found = several(value)
    if not all(isinstance(word, str) for word in found):
        raise TypeError(
            f"`{name}` must be names, got {shown(value)}. Pass a tuple of strings."
        )
    return found


def per_channel(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """A number or one for each channel, in the type of the statistics."""
    with np.errstate(over="ignore"):  # 1e300 is infinite in float32
        found = jnp.asarray(value).astype(dtype)
    if found.shape not in ((), shape):
        raise ValueError(
            f"`{name}` must be a number or have shape {shape}, got {found.shape}. "
            "It is one for all channels, or one for each."
        )
    return found


def numbers(name: str, value: Any, right: Any, requirement: str, *, hint: str) -> Any:
    """A real number or an array of them; a JAX array as it is, all else as NumPy's.

    Args:
        name, value: of the argument; may be traced.
        right, requirement, hint: as in `jaxbn.core.values.require`.
    """
    kind = getattr(value, "dtype", type(value))
    if type(value) in (int, float):
        # NumPy takes a large integer for an object.
        value = np.asarray(value, None if integer(value) is not None else float)
    elif not (
        isinstance(value, _ARRAYS) and jnp.issubdtype(kind, np.number)
    ) or is_deleted(value):
        raise TypeError(f"`{name}` must be a number, got {shown(value)}. {hint}")
    if jnp.iscomplexobj(value):
        raise TypeError(f"`{name}` must be real, got {shown(value)}. {hint}")
    require(name, value, right, requirement, hint=hint)
    return value


def number(name: str, value: Any, right: Any, requirement: str, *, hint: str) -> Any:
    """One real number; a JAX array as it is, all else as Python's. See `numbers`."""
    if not is_single(value):
        raise TypeError(f"`{name}` must be one number, got {shown(value)}. {hint}")
    value = numbers(name, value, right, requirement, hint=hint)
    return value if isinstance(value, Array) else value.item()


def epsilon(value: Any) -> float:
    """The number added to a variance, which must not vanish in float32."""
    if is_traced(value) or not is_single(value):
        raise TypeError(
            f"`epsilon` must be a Python number, got {shown(value)}. It is a constant "
            "of the compiled program: bind it with `functools.partial`."
        )
    limits = np.finfo(np.float32)
    return float(
        number(
            "epsilon",
            value,
            lambda e: (e >= limits.tiny) & (e <= limits.max),
            "positive and finite",
            hint="The usual value is 1e-5.",
        )
    )


def momentum(value: Any, *, debias: bool) -> Any:
    """The weight of the old value, or None for the cumulative average."""
    if value is None:
        return None
    return number(
        "momentum",
        value,
        lambda m: (m >= 0) & ((m < 1) if debias else (m <= 1)),
        "in [0, 1)",
        hint="It is the weight of the old value: PyTorch's `momentum` is 1 minus it, "
        "and None gives the cumulative average.",
    )


def share(name: str, value: Any) -> Any:
    """The weight of an example's own statistics, one or one for each channel."""
    return numbers(
        name,
        value,
        lambda v: (v >= 0) & (v <= 1),
        "in [0, 1]",
        hint="It is the weight of the example's own statistics; 0 is ordinary "
        "evaluation.",
    )
