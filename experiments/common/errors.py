"""The one exception that becomes a one-line message and exit code 2."""

import contextlib
import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can put right: an option, a directory, a checkpoint.

    The message is one sentence on what is wrong, with the value, and one on what to do.
    """


ANOTHER = "Pass another one."
MAKE_ROOM = "Make room there, then continue with `--resume`."


def unwritable(
    out: Path,
    reason: object,
    *,
    advice: str = ANOTHER,
    option: str = "--out",
) -> UserError:
    """The error for an `--out` that cannot be written.

    Args:
        out: the directory.
        reason: why, without a period.
        advice: what to do.
        option: its name, if it is another one.
    """
    return UserError(
        f"`{option}` must be a directory that can be written, got '{out}': {reason}. "
        f"{advice}"
    )


@contextlib.contextmanager
def writing(
    out: Path, *, advice: str = ANOTHER, option: str = "--out"
) -> Iterator[None]:
    """Around what writes into `out`: what the file system refuses becomes `unwritable`.

    Args:
        out, advice, option: as there.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(out, error.strerror, advice=advice, option=option) from error


def again(command: str, *options: object) -> str:
    """Returns the command line that continues a run."""
    own = [str(word) for word in options if word != "--resume"]
    return shlex.join(["python", "-m", "experiments", command, "--resume", *own])


def package(name: str, *, what: str, extra: str) -> Any:
    """Returns a module of a package that only some need.

    Args:
        name: of the module.
        what: what needs it, the beginning of the message.
        extra: with which of jaxbn it is installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{what} must find the package {name.partition('.')[0]}, but there is "
            f'{first_line(error)}. Install it: pip install "jaxbn[{extra}]".'
        ) from error


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of `error`, short and without a period."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
