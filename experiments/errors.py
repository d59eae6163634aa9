"""The one exception that becomes a one-line message and exit code 2."""

from pathlib import Path


class UserError(Exception):
    """Something the user can put right: an option, a directory, a checkpoint.

    The message is one sentence on what is wrong, with the value, and one on what to do.
    """


MAKE_ROOM = "Make room there, then continue with `--resume`."


def unwritable(
    out: Path,
    reason: object,
    *,
    advice: str = "Pass another one.",
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
