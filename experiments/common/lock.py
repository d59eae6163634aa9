"""Keeps two runs from writing into one directory."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from experiments.common import files
from experiments.common.errors import UserError, writing

_NAME = ".lock"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Makes the directory `out` and holds its lock.

    The system releases the lock when the process ends, however it does: a lock that is
    held belongs to a process that runs. Nothing is left if no run has begun.

    Raises:
        UserError: if another process holds the lock, or `out` cannot be written.
    """
    was_there, path = out.exists(), out / _NAME
    is_first = not path.exists()
    files.make_folder(out)
    lock = filelock.FileLock(path)
    with writing(out):
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise UserError(
                f"`--out` must not be in use by another process, got '{out}'. Wait "
                "until that one has ended, or pass another directory."
            ) from error
        except NotImplementedError:
            print(f"note: '{out}' is on a file system without locks", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
        if is_first and not (out / "config.json").exists():
            path.unlink(missing_ok=True)
            if not was_there and not any(out.iterdir()):
                out.rmdir()
