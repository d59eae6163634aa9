"""Reads options into a dataclass; what is wrong with them becomes one line."""

import contextlib
import dataclasses
import io
import math
import operator
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from msgspec import Meta

from experiments.common.errors import UserError

T = TypeVar("T")

# Types of options with their limits.
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Rate = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]

_SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


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


def check_limits(config: Any) -> None:
    """Raises `UserError` for a field beyond the limits of its type; parts likewise."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value: Any = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_limits(value)
        for limits in getattr(hint, "__metadata__", ()):
            if isinstance(limits, Meta) and value is not None:
                _check(name, value, limits)


def _check(name: str, value: Any, limits: Meta) -> None:
    if not math.isfinite(value):
        raise UserError(f"`{flag(name)}` must be finite, got {value}. Pass a number.")
    for sign, words in _SIGNS.items():
        bound = getattr(limits, sign)
        if bound is not None and not getattr(operator, sign)(value, bound):
            raise UserError(
                f"`{flag(name)}` must be {words} {bound}, got {value}. Pass another "
                "number."
            )


def _reason(box: str) -> str:
    # tyro draws a box: a title, a rule, the reason, a rule, and more. The rules are of
    # "-" or of box-drawing characters, and the first one may contain the title.
    lines = [line.strip(" │") for line in box.splitlines()]
    rules = [n for n, line in enumerate(lines) if re.search("[-─]{5}", line)]
    begin, end = (rules[0] + 1, rules[1]) if len(rules) > 1 else (0, len(lines))
    reason = " ".join(" ".join(lines[begin:end]).split())
    return reason if reason.endswith(".") else f"{reason}."
