"""Reads and writes safetensors files, without a dependency.

The format: the size of the header (8 bytes, little endian), the header (JSON, from name
to type, shape and place), the bytes of all arrays.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbn.core.values import shown
from jaxbn.interop import arguments

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
    content = _file(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if not 8 < start <= len(content):
        raise _damaged(path, f"{len(content)} bytes for a header that ends at {start}")
    try:
        header = json.loads(content[8:start], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "a header that cannot be read") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"a header that is a {type(header).__name__}")
    header.pop("__metadata__", None)
    data = memoryview(content)[start:]  # a slice of bytes would be a copy
    places = [_place(path, name, entry) for name, entry in header.items()]
    end = 0
    for begin, next_end in sorted(places):
        if begin != end:
            raise _damaged(path, f"an array at {begin} where one at {end} was due")
        end = next_end
    if end != len(data):
        raise _damaged(path, f"{len(data)} bytes of arrays instead of {end}")
    return {
        name: np.frombuffer(data[slice(*place)], _TYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for (name, entry), place in zip(header.items(), places, strict=True)
    }


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


def _damaged(path: Any, what: str) -> ValueError:
    return ValueError(
        f"`path` must be a safetensors file, got {what} in {str(path)!r}. It is cut "
        "off, damaged or of another format: files of `torch.save` are read by "
        "`torch.load`."
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _place(path: Any, name: str, entry: Any) -> tuple[int, int]:
    """Where the bytes of an array begin and end, if the entry makes sense."""
    fields = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or entry.keys() != fields:
        raise _damaged(path, f"no type, shape and place for {name!r}")
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in _NAMES.values():
        raise ValueError(
            f"`path` must hold arrays of types {', '.join(_TYPES)}, got {kind!r} for "
            f"{name!r}. Convert the file first."
        )
    lists = isinstance(shape, list) and isinstance(span, list) and len(span) == 2
    if not lists or not all(type(n) is int and n >= 0 for n in (*shape, *span)):
        raise _damaged(path, f"shape {shape!r} at {span!r} for {name!r}")
    if span[1] - span[0] != math.prod(shape) * np.dtype(_TYPES[kind]).itemsize:
        raise _damaged(path, f"shape {shape!r} of {kind} at {span!r} for {name!r}")
    return span[0], span[1]


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes arrays to a safetensors file.

    Args:
        path: the file; replaced if it exists.
        arrays: NumPy or JAX arrays, or tensors, by name, for example from `to_torch`.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if an array has a type that the format lacks.

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
    header, parts, place = {}, [], 0
    for name, value in arrays.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(
                "`arrays` must have strings as names, of which the format keeps "
                f"'__metadata__' for text, got {name!r}. Rename the array."
            )
        values = arguments.host(f"`arrays[{name!r}]`", value)
        values = np.ascontiguousarray(values).reshape(values.shape)
        kind = _name(values.dtype, name)
        span = [place, place := place + values.nbytes]
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": span}
        parts.append(values.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = len(text).to_bytes(8, "little")
    file.write_bytes(b"".join([size, text, *parts]))


def _name(kind: np.dtype, name: str) -> str:
    if kind not in _NAMES:
        raise ValueError(
            f"`arrays` must be of types {', '.join(_TYPES)}, got {kind} for {name!r}. "
            "Convert it first."
        )
    return _NAMES[kind]
