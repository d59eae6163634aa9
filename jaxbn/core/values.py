"""Values of arguments where they are known, and their text in messages. A leaf file.

An argument may be traced: then its shape and type are known and its values are not, so
nothing is said about them. Values are known of numbers, NumPy arrays and JAX arrays
that this process holds whole.
"""

import contextlib
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 50


def shown(value: Any) -> str:
    """A few words for a value in a message: of an array its type and shape."""
    if isinstance(value, Tracer):
        return f"a traced {_kind(value)}"
    if isinstance(value, Array | np.ndarray):
        single = value.ndim == 0 and known(value) is not None
        return _SHORT.repr(value.item()) if single else _kind(value)
    if (name := getattr(value, "__qualname__", None)) is not None:
        return f"the class {name}" if isinstance(value, type) else name
    text = _SHORT.repr(value)
    plain = type(value).__module__ == "builtins" or isinstance(value, np.generic)
    if plain and " at 0x" not in text:
        return text
    with contextlib.suppress(Exception):  # not all foreign arrays know theirs
        shape = tuple(value.shape)
        return f"{type(value).__name__} of type {value.dtype} and shape {shape}"
    return type(value).__name__


def _kind(value: Any) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def array(name: str, value: Any) -> Array:
    """`value` as a JAX array.

    Raises:
        TypeError: if it is none and cannot be made one, or its values were deleted.
            Of several arrays, as of a NamedTuple, no one knows which is meant.
    """
    try:
        if not (value is None or is_deleted(value) or hasattr(value, "_fields")):
            return jnp.asarray(value)
        cause = None
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        cause = error
    raise TypeError(
        f"`{name}` must be an array, got {shown(value)}. Pass one of JAX or NumPy."
    ) from cause


def known(value: Any) -> np.ndarray | None:
    """The values of an array or number, or None where they are not known."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, Array):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.extended)
        if is_key or is_deleted(value) or not value.is_fully_addressable:
            return None
    return np.asarray(value)


def is_deleted(value: Any) -> bool:
    """Recognizes an array whose values were given away, as to `donate_argnums`."""
    is_array = isinstance(value, Array) and not isinstance(value, Tracer)
    return is_array and value.is_deleted()


def wrong(value: Any, right: Callable[[np.ndarray], Any]) -> Any:
    """A number in `value` for which `right` is false; None where none is known."""
    values = known(value)
    if values is None:
        return None
    found = values[~np.asarray(right(values), bool)]
    return found[0].item() if found.size else None


def require(
    name: str, value: Any, right: Callable, requirement: str, *, hint: str
) -> None:
    """Refuses values for which `right` is false, where they are known.

    Args:
        name, value: of the argument.
        right: from values to whether they are right.
        requirement: what they must be, as "in [0, 1]".
        hint: what to do, a sentence.
    """
    bad = wrong(value, right)
    if bad is not None:
        raise ValueError(f"`{name}` must be {requirement}, got {bad!r}. {hint}")


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Tells whether this is called with values, as a class is not."""
    return callable(value) and not isinstance(value, type)


def integer(value: Any) -> int | None:
    """An integer of Python, NumPy or JAX of 32 bits, as Python's; None for all else."""
    if isinstance(value, bool | np.bool_ | Tracer):
        return None
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):  # the latter of arrays that were deleted
        return None
    return number if abs(number) < 2**31 else None


def is_single(value: Any) -> bool:
    """Tells whether a value is no sequence; a text is none, and what has no order."""
    unordered = isinstance(value, str | bytes | Mapping | Set)
    if unordered or not isinstance(value, Iterable):
        return True
    hidden = isinstance(value, Array) and not isinstance(value, Tracer)
    return getattr(value, "ndim", 1) == 0 or (hidden and known(value) is None)


def several(value: Any) -> tuple:
    """The items of a sequence, or one value by itself."""
    if is_single(value) or isinstance(value, Tracer):
        return (value,)
    return tuple(np.asarray(value) if isinstance(value, Array) else value)


def is_traced(value: Any) -> bool:
    """Tells whether a value, or an item of it, is only known when the program runs."""
    return any(isinstance(item, Tracer) for item in (value, *_items(value)))


def _items(value: Any) -> tuple:
    return () if isinstance(value, Array) else several(value)
