"""Chooses who runs the loops. Adding an implementation means adding one line here.

The choice has two steps. `choose` names the implementation when a call is traced;
`kernels` gives its loops when the program is compiled, for a known platform, because
only then is it known where the program will run and whether XLA will partition it.
"""

import functools
import importlib
import os
import reprlib

from jaxbn.backends.contract import Kernels

AUTOMATIC = "auto"
# The module of each implementation and the platform that it is compiled for; elsewhere
# the reference implementation takes its place.
_MODULES = {"native": ("jaxbn.backends.native", "cpu")}
_VARIABLE = "JAXBN_IMPLEMENTATION"

# Platforms for which `xla` has loops of their own, by its name for them.
_KINDS = {"cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}

PLATFORMS = *_KINDS, *sorted({platform for _, platform in _MODULES.values()})
"""Those whose programs have loops of their own."""


@functools.cache
def kernels(
    name: str = "xla",
    platform: str | None = None,
    *,
    devices: int = 1,
    exported: bool = False,
) -> Kernels:
    """The loops of implementation `name` in a program for `platform`.

    Without a platform, the loops that run everywhere; with several devices, those for a
    program that XLA partitions. In such a program, and in an exported one, which other
    processes run, all loops are of `xla`.
    """
    xla = importlib.import_module("jaxbn.backends.xla")
    loops = xla.kernels(devices, _KINDS.get(platform or ""))
    if devices > 1 or exported:
        return loops
    for known, (module, its_platform) in _MODULES.items():
        if platform == its_platform and not _missing(known):
            if name == known:
                return importlib.import_module(module).KERNELS
            if name == AUTOMATIC:
                return importlib.import_module(module).FASTEST
    return loops


def _missing(name: str) -> str | None:
    return importlib.import_module(_MODULES[name][0]).missing()


def implementations() -> dict[str, str | None]:
    """The implementations this installation knows.

    Returns:
        A dictionary from name to None where it can be used, and otherwise to the reason
        why it cannot, in one sentence.

    Example:
        >>> jaxbn.implementations()["xla"] is None
        True
    """
    return {"xla": None} | {name: _missing(name) for name in _MODULES}


def choose(implementation: str | None) -> str:
    """The name of the implementation that will run.

    Raises:
        ValueError: if `implementation` is not a known name.
        NotImplementedError: if the named implementation is not usable here.
    """
    source, name = "`implementation`", implementation
    if name is None:
        source, name = f"The variable {_VARIABLE}", os.environ.get(_VARIABLE)
        if not name:
            return AUTOMATIC
    known = implementations()
    if not isinstance(name, str) or name not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(
            f"{source} must be one of {names}, got {reprlib.repr(name)}. Leave it out "
            "for the fastest that is right."
        )
    if known[name] is not None:
        raise NotImplementedError(
            f"{source} must be one that can run here, got {name!r}: {known[name]}. Use "
            "'xla', which runs everywhere."
        )
    return name
