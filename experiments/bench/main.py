"""python -m experiments bench WHAT: jaxbn beside other libraries, in one run.

Prints a Markdown table and writes `WHAT.json` with the environment.
"""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.bench.compilers import devices as accelerators
from experiments.common import environment, files, memory
from experiments.common.errors import writing
from experiments.common.options import Positive, check_limits

# Variables that must be set before a benchmark starts. Threads of one library that spin
# after their work would take the cores of the next.
_TIMED = {"OMP_WAIT_POLICY": "PASSIVE"}
_ENVIRONMENT = {
    **{what: _TIMED for what in ("layer", "step", "fold", "scale", "gpu")},
    "compiled": accelerators.ENVIRONMENT,
}


@dataclass(frozen=True)
class BenchConfig:
    """Measures jaxbn and other libraries in one run."""

    what: Annotated[
        Literal[
            "accuracy", "layer", "step", "memory", "fold", "scale", "compiled", "gpu"
        ],
        tyro.conf.Positional,
    ] = "accuracy"
    """accuracy: errors against float64 for |mean|/std up to 1e5; layer: time of one
    layer on the activations of ResNet-50, MobileNetV2 and dense nets; step: time of
    training steps of ResNet-20 and ResNet-50; memory: bytes of a ResNet-50 training
    step; fold: inference of a ResNet-50 with and without its batch normalization
    folded into the convolutions; scale: time of a ResNet-20 training step on eight
    simulated devices; compiled: what is moved by layers and ResNet-50 steps compiled
    for an H100 and for TPUs that are not here; gpu: time of such layers and steps on
    the GPU that is here."""
    quick: bool = False
    """Fewer shapes and rounds: about a minute."""
    batch: Positive = 8
    """Examples a batch, for `memory`, `fold`, `gpu` and the ResNet-50 of `step`."""
    only: tuple[str, ...] = ()
    """Patterns of the names of programs, for `compiled` and `gpu`: 'v5e/step/*'."""
    max_batch: bool = False
    """The largest batch of a ResNet-50 step that fits, for `compiled`."""
    again: bool = False
    """Compile what `--out` has already, for `compiled`."""
    out: Path = Path("runs/bench")
    """Directory of the results."""


def main(config: BenchConfig) -> int:
    """Runs one benchmark."""
    check_limits(config)
    files.make_folder(config.out)
    wanted = _ENVIRONMENT.get(config.what, {})
    if not _has(wanted):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "experiments", *sys.argv[1:]])
    module = importlib.import_module(f"experiments.bench.{config.what}")
    record, table = module.measure(config)
    record["environment"] = environment.describe()
    record["freed memory"] = "kept" if memory.kept() else "returned"
    print(table)
    with writing(config.out):
        files.write_json(config.out / f"{config.what}.json", record)
    print(f"\nnumbers: {config.out / config.what}.json")
    return 0


def _has(variables: dict[str, str]) -> bool:
    return all(os.environ.get(name) == value for name, value in variables.items())
