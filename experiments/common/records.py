"""Reads the JSON files of a run, and believes only what has the expected form."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from experiments.common.errors import UserError, first_line

T = TypeVar("T")
_GZIP, _LARGEST = 31, 2**30  # 31: one stream with the header and checksum of gzip

# Not JSON, not UTF-8, not of the expected types, nested too deep, not what was packed.
_DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError, zlib.error)


class DamagedError(UserError):
    """A file of a run that is missing, cannot be read, or holds something else."""


def read(path: Path, kind: type[T]) -> T:
    """Returns what a JSON file holds.

    Args:
        path: the file.
        kind: its type, as msgspec takes it: a `Struct`, `dict[str, int]`, and so on.

    Raises:
        DamagedError: if it is not there, or holds something else.
    """
    with _whole(path):
        return msgspec.json.decode(path.read_bytes(), type=kind)


def text(path: Path) -> str:
    """Returns what a text file holds; `DamagedError` if that is not text."""
    with _whole(path):
        return path.read_text(encoding="utf-8")


def converted(value: Any, kind: type[T], *, name: str) -> T:
    """Returns `value`, of JSON, as `kind`; `DamagedError` if it is something else."""
    with _whole(name):
        return msgspec.convert(value, kind)


def lines(path: Path, kind: type[T]) -> tuple[list[T], str]:
    """Returns the rows of a JSONL file up to the first one that is damaged.

    The file may be compressed: then its name ends in ".gz".

    Returns:
        The rows, and what is wrong with the one after them. That is nothing if there
        is none, or only the beginning of one: the writer was killed.

    Raises:
        DamagedError: if there is no such file.
    """
    rows: list[T] = []
    with _whole(path):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = _unpacked(content)
        *whole, _ = content.split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            rows.append(msgspec.json.decode(line, type=kind))
        except _DAMAGED as error:
            return rows, f"line {number}: {first_line(error)}"
    return rows, ""


def _unpacked(packed: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    content = stream.decompress(packed, _LARGEST)
    if not stream.eof or stream.unused_data:
        raise ValueError("not one whole gzip stream of at most a gibibyte")
    return content


@contextlib.contextmanager
def _whole(name: Path | str) -> Iterator[None]:
    name = f"'{name}'" if isinstance(name, Path) else name
    try:
        yield
    except OSError as error:
        raise DamagedError(
            f"{name} must be readable, but: {error.strerror}."
        ) from error
    except _DAMAGED as error:
        raise DamagedError(
            f"{name} must be whole, but: {first_line(error)}."
        ) from error
