"""Checks of the arguments of every conversion, with their messages."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxbn.core.values import known, shown


def is_a(value: Any, name: str, *packages: str) -> bool:
    """Recognizes an instance of a class of that name in one of the packages.

    Found by the names of its bases, because nothing may be imported to ask.
    """
    places = tuple(f"{package}." for package in packages)
    return any(
        base.__name__ == name and f"{base.__module__}.".startswith(places)
        for base in type(value).__mro__
    )


def text(name: str, value: Any, meaning: str) -> None:
    """Refuses what is no string."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string, got {shown(value)}. {meaning}")


def mapping(name: str, value: Any, meaning: str) -> None:
    """Refuses what has no values by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be a mapping, got {shown(value)}. {meaning}")


def number(name: str, value: Any) -> Any:
    """A number of any library as one of Python; traced numbers stay as they are."""
    if isinstance(value, Tracer):
        return value
    try:
        if isinstance(value, str | bytes | bool) or np.ndim(value):
            raise TypeError("float() takes these too")
        return float(value)
    except Exception as error:  # a foreign object may raise anything
        raise TypeError(
            f"`{name}` must be a number, got {shown(value)}. Pass a Python float."
        ) from error


def share(name: str, value: Any, meaning: str) -> Any:
    """A number from 0 to 1, unless it is traced."""
    value = number(name, value)
    if not isinstance(value, Tracer) and not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}. {meaning}")
    return value


def array(label: str, value: Any) -> Any:
    """A NumPy or JAX array, which may be traced, of whatever holds one."""
    try:
        if hasattr(value, "detach"):
            return _of_tensor(value)
        if not isinstance(value, Array):
            return np.asarray(value)
        if not isinstance(value, Tracer) and value.is_deleted():
            raise ValueError("donated to a jitted function")
    except Exception as error:  # a foreign object may raise anything
        raise TypeError(
            f"{label} must be an array with values, got {shown(value)}. Tensors of "
            'lazy modules or on the device "meta", abstract and donated arrays have '
            "none: load or compute them first."
        ) from error
    return value


def host(label: str, value: Any) -> np.ndarray:
    """A NumPy array of whatever holds one, of any type."""
    values = array(label, value)
    if isinstance(values, Tracer) or jnp.issubdtype(values.dtype, jax.dtypes.extended):
        raise TypeError(
            f"{label} must have values that NumPy has too, got {shown(value)}. Convert "
            "outside of `jax.jit`, and random keys by `jax.random.key_data`."
        )
    return np.asarray(values)


def numbers(label: str, value: Any) -> Any:
    """An array of numbers."""
    values = array(label, value)
    # NumPy has wider types than JAX.
    if not jnp.issubdtype(values.dtype, np.number) or values.dtype.char in "gG":
        raise TypeError(
            f"{label} must be an array of numbers, got {shown(value)}. Pass floating "
            "point values of 64 bits or less."
        )
    return values


def vector(label: str, value: Any) -> Array:
    """One number per channel, in at least float32, from an array of any rank."""
    values = numbers(label, value)
    if values.ndim == 0 or sum(size != 1 for size in values.shape) > 1:
        raise ValueError(
            f"{label} must have one axis of features, got shape {values.shape}. Pass "
            "one layer with one value per channel."
        )
    narrow = values.dtype.itemsize < 4 or jnp.issubdtype(values.dtype, np.integer)
    kind = np.float32 if narrow else values.dtype
    return jnp.asarray(values.reshape(-1).astype(kind))


def finite(label: str, values: Array) -> None:
    """Refuses arrays with a value that nothing can be computed with."""
    host = known(values)
    if host is not None and not np.isfinite(host).all():
        bad = host[~np.isfinite(host)][0]
        raise ValueError(
            f"{label} must be finite, got {bad} in {np.sum(~np.isfinite(host))} of "
            f"{host.size} places. Every output would be lost: go back to values from "
            "before they diverged."
        )


def _of_tensor(value: Any) -> np.ndarray:
    """A tensor of PyTorch as a NumPy array; floats that NumPy lacks as float32."""
    value = value.detach().cpu()
    narrow = value.is_floating_point() and value.element_size() < 4
    return (value.float() if narrow else value).numpy()
