"""Reads and writes safetensors files, without a dependency.

The format: the size of the header (8 bytes, little endian), the header (JSON, from name
to type, shape and place), the bytes of all arrays.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name, for `from_torch`.

    Args:
        path: the file.

    Returns:
        NumPy arrays.

    Raises:
        ValueError: if an array has a type that NumPy and JAX lack.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxbn.interop.write_safetensors(f"{folder}/w", {"weight": jnp.ones(2)})
        ...     jaxbn.interop.read_safetensors(f"{folder}/w")
        {'weight': array([1., 1.], dtype=float32)}
    """
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    data = memoryview(content)[start:]  # a slice of bytes would be a copy
    return {name: _read(entry, data, name) for name, entry in header.items()}


def _read(entry: Mapping[str, Any], data: memoryview, name: str) -> np.ndarray:
    if entry["dtype"] not in _TYPES:
        raise ValueError(
            f"`path` must hold arrays of types {', '.join(_TYPES)}, got "
            f"{entry['dtype']!r} for {name!r}. Convert the file first."
        )
    begin, end = entry["data_offsets"]
    values = np.frombuffer(data[begin:end], _TYPES[entry["dtype"]])
    return values.reshape(entry["shape"])


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes arrays to a safetensors file.

    Args:
        path: the file; replaced if it exists.
        arrays: NumPy or JAX arrays by name, for example from `to_torch`.

    Raises:
        ValueError: if an array has a type that the format lacks.

    Example:
        >>> import tempfile
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/w"
        ...     jaxbn.interop.write_safetensors(path, jaxbn.interop.to_torch(layer))
        ...     sorted(jaxbn.interop.read_safetensors(path))
        ['num_batches_tracked', 'running_mean', 'running_var']
    """
    header, parts, place = {}, [], 0
    for name, value in arrays.items():
        values = np.ascontiguousarray(value).reshape(np.shape(value))
        kind = _name(values.dtype, name)
        span = [place, place := place + values.nbytes]
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": span}
        parts.append(values.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = len(text).to_bytes(8, "little")
    Path(path).write_bytes(b"".join([size, text, *parts]))


def _name(kind: np.dtype, name: str) -> str:
    if kind not in _NAMES:
        raise ValueError(
            f"`arrays` must be of types {', '.join(_TYPES)}, got {kind} for {name!r}. "
            "Convert it first."
        )
    return _NAMES[kind]
