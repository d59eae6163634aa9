"""The largest batch of a ResNet-50 training step that fits a chip.

By what the compiler says the step needs: arguments, results and temporary arrays, less
what is donated. A program that does not fit is refused by some compilers, and there is
no figure then. Needs are nearly a straight line over the batch until a compiler begins
to compute again what it has no memory for, so a guess by that line takes turns with one
that halves what is left.
"""

import dataclasses
import math
from typing import Any

import jax

from experiments.bench.compilers import devices, programs
from experiments.bench.compilers.programs import Program
from experiments.bench.compilers.run import Store, say

NORMS = (
    "none", "flax", "flax-two-pass", "jaxbn", "jaxbn-recompute",
    "none-leaky", "jaxbn-leaky", "jaxbn-output",
)  # fmt: skip
"""The last three have leaky ReLU in place of ReLU."""
MULTIPLE = {"h100": 64, "v5e": 16}
"""The batch is a multiple of this."""


def plan() -> list[Program]:
    """One step for each chip and normalization; the batch is what is looked for."""
    return [
        Program(chip, "step", "bfloat16", (0,), "network", 1, "jit", norm)
        for chip in MULTIPLE
        for norm in NORMS
    ]


def name_of(program: Program) -> str:
    """The name of a record."""
    return f"{program.chip}/largest/{program.dtype}/{program.norm}"


def search(program: Program, store: Store, *, again: bool) -> None:
    """Finds the largest batch and keeps it; what was tried before is not compiled."""
    name = name_of(program)
    found = None if again else store.current(name, program)
    needed: dict[int, int | None] = {
        int(batch): size for batch, size in (found or {"needed": {}})["needed"].items()
    }
    memory, multiple = devices.CHIPS[program.chip].memory, MULTIPLE[program.chip]
    while (batch := guess(needed, memory, multiple)) is not None:
        one = dataclasses.replace(program, shape=(batch,))
        result = programs.measured(one)
        needed[batch] = result.get("needed")
        seconds = result.get("seconds", "")
        say(f"{name}  batch {batch}: {_said(needed[batch])}  {seconds} s")
        store.put(name, _record(program, needed, memory), program)
        jax.clear_caches()


def guess(needed: dict[int, int | None], memory: float, multiple: int) -> int | None:
    """Returns the batch to try next, or None if the largest one is known.

    Args:
        needed: bytes by batch, None where the compiler refused.
        memory: bytes that there are.
        multiple: the batch is a multiple of this.
    """
    fitting = [b for b, size in needed.items() if size is not None and size <= memory]
    others = [b for b in needed if b not in fitting]
    low, high = max(fitting, default=0), min(others, default=None)
    if high is not None and high - low <= multiple:
        return None
    aim = _on_the_line(needed, memory, low, high)
    if high is None:
        if aim is None:
            return 2 * low or 2 * multiple
        # Where the line is flat it says too much, and a large step is slow to compile.
        aim = min(aim, 1.1 * low * memory / (needed[low] or 1))
    elif aim is None or not low < aim < high or len(needed) % 2:
        aim = (low + high) / 2
    aim = aim if high is None else min(aim, high - multiple)
    return max(int(aim // multiple) * multiple, low + multiple)


def _on_the_line(
    needed: dict[int, int | None], memory: float, low: int, high: int | None
) -> float | None:
    """Returns where the line through the two tries beside the memory reaches it."""
    below = sorted(b for b, size in needed.items() if size is not None and b <= low)
    ends = [*below, *([high] if high and needed[high] is not None else [])][-2:]
    if len(ends) < 2:
        return None
    (b1, s1), (b2, s2) = ((batch, needed[batch] or 0) for batch in ends)
    return b1 + (memory - s1) * (b2 - b1) / (s2 - s1) if s2 > s1 else math.inf


def _record(
    program: Program, needed: dict[int, int | None], memory: float
) -> dict[str, Any]:
    fitting = [b for b, size in needed.items() if size is not None and size <= memory]
    multiple = MULTIPLE[program.chip]
    return {
        "chip": program.chip,
        "kind": "largest",
        "type": program.dtype,
        "norm": program.norm,
        "memory": memory,
        "multiple_of": multiple,
        "batch": max(fitting, default=0),
        "finished": guess(needed, memory, multiple) is None,
        "needed": {str(batch): needed[batch] for batch in sorted(needed)},
    }


def _said(size: int | None) -> str:
    return "refused" if size is None else f"{size / 1e9:.2f} GB"
