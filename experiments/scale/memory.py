"""The memory that a compiled step needs on a device."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.common import files, processes
from experiments.common.errors import MAKE_ROOM, writing

_SIZES = ("argument", "output", "alias", "temp", "generated_code")


def report(
    out: Path, step: Callable[..., Any], state: Any, batch: dict
) -> Callable[..., Any]:
    """Compiles `step`, writes its memory to `memory.json`, and returns it compiled.

    A step that cannot be compiled ahead (`pmap`) is returned as it is.
    """
    lower = getattr(step, "lower", None)
    if lower is None:
        return step
    compiled = lower(state, batch).compile()
    # One that compiles longer must not be missed when the first step connects all.
    processes.wait_for_all("compiled")
    if processes.is_first():
        with writing(out, advice=MAKE_ROOM):
            files.write_json(out / "memory.json", describe(compiled))
    return compiled


def describe(compiled: Any) -> dict[str, int | None]:
    """Returns bytes per device of a compiled step, and what is in use just now."""
    analysis = compiled.memory_analysis()
    sizes = {
        f"{name}_bytes": getattr(analysis, f"{name}_size_in_bytes", None)
        for name in _SIZES
    }
    in_use = jax.local_devices()[0].memory_stats() or {}
    return sizes | {
        "device_peak_bytes": in_use.get("peak_bytes_in_use"),
        "process_peak_bytes": process_peak_bytes(),
    }


def process_peak_bytes() -> int:
    """Returns the most memory that this process has ever had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
