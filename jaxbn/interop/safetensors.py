"""Reads and writes safetensors files, by the library of that name."""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbn.core.values import shown
from jaxbn.interop import arguments

# The library itself reads into NumPy only types that NumPy has a name for.
_TYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "F8_E8M0": jnp.float8_e8m0fnu,
        "C64": np.complex64,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name, for `from_torch`.

    Args:
        path: the file.

    Returns:
        NumPy arrays, in the order of the header.

    Raises:
        ImportError: if the package safetensors is missing.
        TypeError: if `path` is no path.
        ValueError: if the file is damaged or of another format, or an array has a type
            that NumPy and JAX lack.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxbn.interop.write_safetensors(f"{folder}/w", {"weight": jnp.ones(2)})
        ...     jaxbn.interop.read_safetensors(f"{folder}/w")
        {'weight': array([1., 1.], dtype=float32)}
    """
    file, library = _file(path), _library("safetensors")
    content = file.read_bytes()
    try:
        entries = dict(library.deserialize(content))
        names = _names(content)
    except (library.SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    return {name: _read(path, name, **entries[name]) for name in names}


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes arrays to a safetensors file.

    Args:
        path: the file; replaced if it exists.
        arrays: NumPy or JAX arrays, or tensors, by name, for example from `to_torch`.

    Raises:
        ImportError: if the package safetensors is missing.
        TypeError: if an argument is of another kind.
        ValueError: if an array has a type or a name that the format lacks.

    Example:
        >>> import tempfile
        >>> state = jaxbn.init_state(2)
        >>> layer = jaxbn.interop.Layer(state, axis=1, unbiased=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/w"
        ...     jaxbn.interop.write_safetensors(path, jaxbn.interop.to_torch(layer))
        ...     sorted(jaxbn.interop.read_safetensors(path))
        ['num_batches_tracked', 'running_mean', 'running_var']
    """
    file = _file(path)
    arguments.mapping("arrays", arrays, "Its keys are the names of the arrays.")
    found = {name: _values(name, value) for name, value in arrays.items()}
    file.write_bytes(_library("safetensors.numpy").save(found))


def _values(name: Any, value: Any) -> np.ndarray:
    # What the library does not ask: it writes files that it cannot read again.
    if not isinstance(name, str) or name == "__metadata__" or _lone(name):
        raise ValueError(
            "`arrays` must have strings as names, of which the format keeps "
            f"'__metadata__' for text, got {name!r}. Rename the array."
        )
    values = arguments.host(f"`arrays[{name!r}]`", value)
    if values.dtype.newbyteorder("=") not in _TYPES.values():
        raise ValueError(
            f"`arrays` must be of types {', '.join(_TYPES)}, got {values.dtype} for "
            f"{name!r}. Convert it first."
        )
    # It takes the memory as it lies, whatever the strides.
    return np.asarray(values, order="C")


def _lone(name: str) -> bool:
    """Finds half of a pair of surrogates, which UTF-8 cannot write."""
    return name.encode(errors="ignore").decode() != name


def _read(path: Any, name: str, *, dtype: str, shape: list, data: Any) -> np.ndarray:
    if dtype not in _TYPES:
        raise ValueError(
            f"`path` must hold arrays of types {', '.join(_TYPES)}, got {dtype} for "
            f"{name!r:.80}. Convert the file first."
        )
    try:
        return np.frombuffer(data, _TYPES[dtype]).reshape(shape)
    except ValueError as error:  # of shapes that no array has
        raise _damaged(path, error) from error


def _damaged(path: Any, error: Exception) -> ValueError:
    reason = str(error).removeprefix("Error while deserializing: ")[:200].rstrip(".")
    return ValueError(
        f"`path` must be a safetensors file, got {str(path)!r}: {reason}. It is cut "
        "off, damaged or of another format: files of `torch.save` are read by "
        "`torch.load`."
    )


def _names(content: bytes) -> list[str]:
    """The names in a header that the library accepts, which gives them in any order.

    Raises:
        ValueError: if one occurs twice: of such arrays the library takes the last.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in the header")
        return dict(pairs)

    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end], object_pairs_hook=unique)
    return [name for name in header if name != "__metadata__"]


def _file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"`path` must be a path, got {shown(path)}. Pass a string or a "
            "`pathlib.Path`."
        )
    if Path(path).is_dir():
        raise ValueError(
            f"`path` must be a file, got the folder {str(path)!r}. Add the file's name."
        )
    return Path(path)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "safetensors files must be read and written by the package safetensors, "
            'got none. Install it: pip install "jaxbn[safetensors]".'
        ) from error
