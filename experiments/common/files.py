"""Writes files that are either the old ones or the new ones, never half of each."""

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from experiments.common.errors import UserError, unwritable, writing


def make_folder(folder: Path, *, option: str = "--out") -> None:
    """Makes a directory, and finds out whether files can be written there.

    Args:
        folder: of results; those above it are made too.
        option: what names it on the command line.

    Raises:
        UserError: if they cannot.
    """
    with writing(folder, option=option):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another name to write to, and moves what is there to `path` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def plain(values: Any) -> Any:
    """Returns values for JSON, with null for numbers that are not finite."""
    return msgspec.json.decode(
        msgspec.json.encode(values, enc_hook=lambda value: value.item())
    )


def write_json(path: Path, content: dict) -> None:
    """Replaces `path` by indented, strictly valid JSON."""
    text = json.dumps(content, indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_lines(path: Path, rows: list[dict]) -> None:
    """Replaces `path` by one JSON object a line, compressed if it ends in ".gz".

    Without a name or time in it, so that the same rows are the same bytes.
    """
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
    packed = path.suffix == ".gz"
    write_bytes(path, gzip.compress(text, mtime=0) if packed else text)


def check_new(out: Path) -> None:
    """Raises `UserError` unless `out` is empty or not there yet."""
    try:
        names = {path.name for path in out.iterdir() if path.name[0] != "."}
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(out, error.strerror) from error
    if "config.json" in names:
        raise UserError(
            f"`--out` must not hold a run yet, got '{out}'. Continue that run with "
            "`--resume`, or pass another directory."
        )
    if names:
        raise UserError(
            f"`--out` must be new or empty, got '{out}' with other files. "
            "Pass another directory."
        )
