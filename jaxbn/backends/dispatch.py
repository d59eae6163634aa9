"""Chooses who runs the loops. Adding an implementation means adding one line here."""

import functools
import importlib
import os

from jax import Array

from jaxbn.backends.contract import Kernels

_MODULES = {"xla": "jaxbn.backends.xla"}
_PLANNED = {"native": "not part of this version", "pallas": "not part of this version"}
_VARIABLE = "JAXBN_IMPLEMENTATION"


@functools.cache
def kernels(name: str) -> Kernels:
    """The loops of implementation `name`."""
    return importlib.import_module(_MODULES[name]).KERNELS


def implementations() -> dict[str, str | None]:
    """The implementations this installation knows.

    Returns:
        A dictionary from name to None where it can be used, and otherwise to the reason
        why it cannot, in one sentence.

    Example:
        >>> jaxbn.implementations()["xla"] is None
        True
    """
    return dict.fromkeys(_MODULES) | _PLANNED


def choose(implementation: str | None, x: Array) -> str:
    """The name of the implementation that will run `x`.

    Raises:
        ValueError: if `implementation` is not a known name.
        NotImplementedError: if the named implementation cannot run this call.
    """
    name = implementation or os.environ.get(_VARIABLE) or "xla"
    source = "`implementation`" if implementation else f"The variable {_VARIABLE}"
    if name in _MODULES:
        return name
    if name in _PLANNED:
        raise NotImplementedError(
            f"{source} {name!r} cannot run this call: {_PLANNED[name]}. "
            "Use 'xla', which runs everywhere."
        )
    known = ", ".join(map(repr, (*_MODULES, *_PLANNED)))
    raise ValueError(
        f"{source} must be one of {known}, got {name!r}. Leave it out for the fastest "
        "that is right."
    )
