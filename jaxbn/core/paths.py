"""Selects layers of a model by their paths, as "block/norm"."""

import re
from collections.abc import Callable
from typing import Any

from jaxbn.core.values import is_function, shown


def pattern(name: str, value: Any, *, hint: str) -> Callable[[str], Any]:
    """Tells whether a whole name matches a regular expression."""
    if not isinstance(value, str):
        raise TypeError(
            f"`{name}` must be a regular expression, got {shown(value)}. {hint}"
        )
    try:
        return re.compile(value).fullmatch
    except re.error as error:
        raise ValueError(
            f"`{name}` must be a regular expression, got {value!r}: {error}. {hint}"
        ) from error


def chosen(only: Any) -> Callable[[str], Any]:
    """Tells whether a path is one of those that `only` means; None means all."""
    if only is None:
        return lambda path: True
    if is_function(only):
        return only
    hint = 'It is for whole paths, as "encoder/.*", or a function of the path.'
    return pattern("only", only, hint=hint)


def require_some(
    only: Any, found: Any, known: list[str], name: str, hint: str = ""
) -> None:
    """Refuses a model without layers, and an `only` that means none of them.

    Args:
        only: as in `chosen`.
        found: the layers that are meant.
        known: the paths of all layers.
        name: of the argument that is the model.
        hint: what else to do without layers, a sentence.
    """
    if not known:
        raise ValueError(
            f"`{name}` must contain batch normalization, got none. Pass the whole "
            f"model, or the part that has it. {hint}".rstrip()
        )
    if not found:
        raise ValueError(
            f"`only` must match the path of a batch normalization, got {shown(only)}. "
            f"Here there are {', '.join(map(repr, known))}."
        )
