"""Reads options into a dataclass; what is wrong with them becomes one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from experiments.common.errors import UserError

T = TypeVar("T")


def parse(
    kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None
) -> T:
    """Returns the dataclass `kind` filled from `arguments`.

    Args:
        kind: a dataclass whose fields all have defaults and docstrings.
        arguments: what follows the command, such as `["--steps", "100"]`.
        prog: how the command is called, for messages.
        default: values of the options that are not given. Default: those of `kind`.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            start = kind() if default is None else default
            return tyro.cli(kind, args=list(arguments), prog=prog, default=start)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(f"{_reason(errors.getvalue())} See {prog} --help.") from None


def flag(name: str) -> str:
    """Returns the option of the command line for a field."""
    return "--" + name.replace("_", "-")


def _reason(box: str) -> str:
    # tyro draws a box: a title, a rule, the reason, a rule, and more. The rules are of
    # "-" or of box-drawing characters, and the first one may contain the title.
    lines = [line.strip(" │") for line in box.splitlines()]
    rules = [n for n, line in enumerate(lines) if re.search("[-─]{5}", line)]
    begin, end = (rules[0] + 1, rules[1]) if len(rules) > 1 else (0, len(lines))
    reason = " ".join(" ".join(lines[begin:end]).split())
    return reason if reason.endswith(".") else f"{reason}."
