"""The list of programs to compile, their names, and what is read of each."""

import fnmatch
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

from experiments.bench.compilers import devices, hlo
from experiments.collectives import hlo as collectives
from experiments.common.errors import UserError

Parallel = Literal["jit", "shard_map"]
SHAPES = (
    (64, 112, 112, 64), (64, 56, 56, 256), (64, 28, 28, 512), (64, 14, 14, 1024),
    (64, 7, 7, 2048), (8192, 4096), (4096, 1024),
)  # fmt: skip
"""Of x on one device: activations of ResNet-50, and of dense layers."""
CHOSEN = SHAPES[3], SHAPES[5]
"""Those that are compiled for several devices too, and with an activation."""
DTYPES = "float32", "bfloat16"
NORMS = "jaxbn", "flax", "flax-two-pass"
BATCH = 64
"""Images of a device in a step."""
STEP_NORMS = (
    "jaxbn", "flax", "flax-two-pass", "jaxbn-recompute", "jaxbn-output", "none",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        chip: a key of `devices.CHIPS`.
        kind: a layer, forward and backward or forward only, or a training step of
            ResNet-50.
        dtype: of x, or the type that the step computes in.
        shape: of x on one device; of a step (examples on one device,).
        activation: "none", "relu" or "add+relu"; of a step "network".
        devices: how many.
        parallel: one program for all of them, or one for each.
        norm: what normalizes, a key of `layers.LAYERS` or `steps.WAYS`.
    """

    chip: str
    kind: Literal["layer", "forward", "step"]
    dtype: str
    shape: tuple[int, ...]
    activation: str
    devices: int
    parallel: Parallel
    norm: str

    @property
    def name(self) -> str:
        """Its parts with slashes between, for people and for `--only`."""
        size = "x".join(map(str, self.shape))
        parts = (self.chip, self.kind, self.dtype, size, self.activation)
        return "/".join([*parts, str(self.devices), self.parallel, self.norm])

    @property
    def uses_jaxbn(self) -> bool:
        """Tells whether the library is part of it."""
        return self.norm.startswith("jaxbn")

    @property
    def unit(self) -> int | None:
        """Bytes of x on one device; None for a step."""
        if self.kind == "step":
            return None
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else 4)


def plan(*, quick: bool) -> list[Program]:
    """All programs, those that take minutes last; or those of a minute."""
    if quick:
        return [
            Program(chip, "layer", "bfloat16", shape, "relu", count, "jit", norm)
            for chip in ("h100", "v5e")
            for shape in (SHAPES[3], SHAPES[6])
            for count in (1, 4)
            for norm in ("jaxbn", "flax")
        ]
    return [*_layers("h100"), *_layers("v5e"), *_large_meshes(), *_steps()]


def _layers(chip: str) -> list[Program]:
    found = []
    for dtype in DTYPES:

        def layers(shapes, activation, count, parallels, norms, dtype=dtype):
            return [
                Program(chip, "layer", dtype, shape, activation, count, parallel, norm)
                for shape in shapes
                for parallel in parallels
                for norm in norms
            ]

        found += layers(SHAPES, "none", 1, ("jit",), (*NORMS, "jaxbn-output"))
        for activation in ("relu", "add+relu"):
            found += layers(CHOSEN, activation, 1, ("jit",), NORMS)
        for count in (4, 8):
            for activation in ("none", "add+relu"):
                ways = ("jit", "shard_map")
                found += layers(CHOSEN, activation, count, ways, NORMS[:2])
    return found


def _large_meshes() -> list[Program]:
    """One layer for 256 and for 4,096 chips."""
    return [
        Program(chip, "layer", "bfloat16", shape, "relu", count, parallel, norm)
        for chip, count in (("v5e", 256), ("v6e", 256), ("v5p", 4096))
        for shape in CHOSEN
        for parallel in ("jit", "shard_map")
        for norm in NORMS[:2]
    ]


def _steps() -> list[Program]:
    def step(chip, count, norm):
        options = chip, "step", "bfloat16", (BATCH,), "network", count, "jit"
        return Program(*options, norm)

    found = [step("h100", 1, norm) for norm in STEP_NORMS]
    found += [step("h100", 8, norm) for norm in STEP_NORMS[:2]]
    found += [step("v5e", 1, norm) for norm in STEP_NORMS]
    found += [step("v5e", 256, norm) for norm in STEP_NORMS[:2]]
    return found + [step("v5p", 4096, norm) for norm in STEP_NORMS[:2]]


def chosen(names: list[str], only: tuple[str, ...]) -> list[str]:
    """Those that match one of the patterns; all without patterns.

    Raises:
        UserError: if none does.
    """
    matched = [
        name
        for name in names
        if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)
    ]
    if not matched:
        chip, kind, *_ = names[0].split("/")
        raise UserError(
            f"`--only` must match the name of a program, got {' '.join(only)}. Names "
            f"look like {names[0]}; pass for example '{chip}/{kind}/*'."
        )
    return matched


def measured(program: Program) -> dict[str, Any]:
    """Compiles a program; returns what its text says, or why there is none.

    Raises:
        UserError: if a part of the compiler is missing.
    """
    from experiments.bench.compilers import layers, steps

    lowered = (steps if program.kind == "step" else layers).lower(program)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except RuntimeError as error:  # what XLA raises: too large, say
        reason = str(error).splitlines()[0][:300]
        if "libdevice not found" in reason:
            raise UserError(
                "`compiled` must find the assembler of CUDA and its library, got "
                f"'{reason}'. Install them: pip install nvidia-cuda-nvcc-cu12."
            ) from None
        return {"error": reason}
    seconds = time.perf_counter() - began
    return figures(program, compiled) | {"seconds": round(seconds, 1)}


def figures(program: Program, compiled: Any) -> dict[str, Any]:
    """Returns the counts, the collectives and the memory of a compiled program."""
    text, chip = compiled.as_text(), devices.CHIPS[program.chip]
    read = hlo.counts(text, on_chip=chip.on_chip)
    sent = collectives.collectives(text)
    cost = compiled.cost_analysis() or {}
    unit, by_compiler = program.unit, cost.get("bytes accessed")
    return {
        **read._asdict(),
        "bytes_over_x": unit and read.bytes / unit,
        "on_chip_over_x": unit and read.on_chip / unit,
        # Of all memories, moves between them and renamed buffers included; of a
        # conditional the larger branch.
        "bytes_by_compiler": by_compiler,
        "bytes_by_compiler_over_x": unit and by_compiler and by_compiler / unit,
        **{
            kind.replace("-", "_"): sum(c.kind == kind for c in sent)
            for kind in ("all-reduce", "all-gather", "reduce-scatter")
        },
        "in_branches": sum(c.in_branch for c in sent),
        "bytes_sent": sum(c.bytes for c in sent),
        **memory(compiled),
    }


def memory(compiled: Any) -> dict[str, int]:
    """Returns bytes of memory of one device; `needed` is what must fit it."""
    found = compiled.memory_analysis()
    sizes = {
        name: getattr(found, f"{name}_size_in_bytes")
        for name in ("argument", "output", "temp", "alias")
    }
    needed = sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]
    return sizes | {"needed": needed}
