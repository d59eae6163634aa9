"""Compares the collectives of a compiled training step with the cost model.

Run: python -m experiments collectives --devices 8 64 256

The step is compiled for simulated devices and never run, so a laptop is enough for 256.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.collectives import cost, hlo
from experiments.collectives.table import table, times
from experiments.common import environment, files
from experiments.common.errors import UserError
from experiments.common.options import Positive, check_limits
from experiments.scale import config as scale_config
from experiments.scale.layout import Layout, make_layout, simulated
from experiments.scale.network import make_network
from experiments.scale.optimizer import make_optimizer
from experiments.scale.step import Step

# Machine code of a program that is not run needs no optimization.
_NEVER_RUN = {"xla_backend_optimization_level": 0}


@dataclass(frozen=True)
class CollectivesConfig:
    """Counts the collectives of a training step, and compares them with the model."""

    devices: tuple[int, ...] = (8, 64, 256)
    """Numbers of simulated devices."""
    depth: int = 50
    """Layers of the ResNet: 50, or 6n + 2 for small images."""
    norm: Literal["jaxbn", "flax"] = "jaxbn"
    """Library of the normalization; `flax` for comparison."""
    bn_sync: str = "global"
    """The examples that share statistics, as for `train`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the network computes in."""
    parallel: Literal["jit", "explicit", "shard_map"] = "jit"
    """The way the step is spread over the devices."""
    examples: Positive = 2
    """Examples of each device."""
    out: Path = field(default=Path("runs/collectives"))
    """Directory of the results."""


class Program(NamedTuple):
    """A compiled step.

    Attributes:
        devices: how many devices it is for.
        before, after: its collectives before and after XLA combined them.
        model: what the cost model says.
    """

    devices: int
    before: list[hlo.Collective]
    after: list[hlo.Collective]
    model: cost.Traffic


def main(config: CollectivesConfig) -> int:
    """Prints a table and writes it; 4 if the step sends more than it should."""
    _check(config)
    files.make_folder(config.out)
    everyone = simulated(max(config.devices))
    programs = []
    for count in config.devices:
        programs.append(compiled(config, everyone[:count]))
        print(f"{count} devices: compiled", flush=True)
    records = [summary(program) for program in programs]
    text = f"{table(records)}\n\n{times(programs[0].model)}\n"
    content = {
        "network": f"ResNet-{config.depth}",
        "norm": config.norm,
        "bn_sync": config.bn_sync,
        "dtype": config.dtype,
        "parallel": config.parallel,
        "examples_per_device": config.examples,
        "programs": records,
        "environment": environment.describe(),
    }
    print(f"\n{text}")
    files.write_json(config.out / "collectives.json", content)
    files.write_bytes(config.out / "collectives.md", text.encode())
    print(f"numbers: {config.out / 'collectives.json'}")
    return 0 if config.bn_sync != "global" or all(map(within, records)) else 4


def compiled(config: CollectivesConfig, devices: list[Any]) -> Program:
    """Compiles a step for `devices`, twice, from the shapes of its arguments."""
    layout = make_layout(scale_config.Devices(config.parallel), found=devices)
    step = _step(config, layout)
    state = layout.shapes(step.init)
    lowered = layout.spread(step, state).lower(state, _batch(config, layout))
    before, after = (
        hlo.collectives(lowered.compile(_NEVER_RUN | options).as_text())
        for options in (hlo.BEFORE_COMBINING, {})
    )
    model = cost.traffic(state.params, state.batch_stats)
    return Program(len(devices), before, after, model)


def summary(program: Program) -> dict[str, Any]:
    """The figures of a program."""
    names = {layer.name for layer in program.model.layers}
    of_layer = [(c, name) for c in program.before if (name := _layer(c, names))]
    passes = {
        way: [(c, n) for c, n in of_layer if c.is_backward == (way == "backward")]
        for way in ("forward", "backward")
    }
    forward, backward = (
        sum(c.bytes for c, _ in passes[w]) for w in ("forward", "backward")
    )
    model, after = program.model, program.after
    return {
        "devices": program.devices,
        "layers": len(names),
        "most_all_reduces_of_a_layer": {way: _most(p) for way, p in passes.items()},
        "in_branches": sum(c.in_branch for c in program.before),
        "statistics_all_reduces": len(of_layer),
        "statistics_bytes": {"forward": forward, "backward": backward},
        "model_statistics_bytes": {
            "forward": model.forward,
            "backward": model.backward,
        },
        "statistics_ratio": (forward + backward) / model.statistics,
        "all_reduces_before_combining": _count(program.before, "all-reduce"),
        "all_reduces_after_combining": _count(program.after, "all-reduce"),
        "arrays_of_the_largest_after_combining": max(
            len(c.types) for c in program.after
        ),
        "total_bytes": sum(c.bytes for c in after if c.kind == "all-reduce"),
        "model_total_bytes": model.statistics + model.gradients,
        "others": {k: n for k in hlo.KINDS[1:] if (n := _count(program.before, k))},
        "group_sizes": sorted({c.devices for c in program.before}),
    }


def within(record: dict[str, Any]) -> bool:
    """Tells whether a step sends what it should and no more.

    One all-reduce per layer and pass before combining, bytes within 5 % of the model,
    no collective that is not an all-reduce, and none in a branch.
    """
    most = record["most_all_reduces_of_a_layer"]
    return (
        max(most.values()) <= 1
        and abs(record["statistics_ratio"] - 1) <= 0.05
        and not record["others"]
        and not record["in_branches"]
    )


def _options(config: CollectivesConfig):
    small = config.depth != 50
    model = scale_config.Model(
        depth=config.depth,
        dtype=config.dtype,
        norm=config.norm,
        bn_sync=config.bn_sync,
    )
    size, classes = (32, 10) if small else (224, 1000)
    return model, scale_config.Data(image_size=size, classes=classes)


def _step(config: CollectivesConfig, layout: Layout) -> Step:
    model, data = _options(config)
    batch_size = config.examples * layout.data_devices
    network = make_network(
        model,
        data,
        batch_size=batch_size,
        data_devices=layout.data_devices,
        axis_name=layout.axis_name,
    )
    optimizer = scale_config.Optimizer(batch_size=batch_size)
    step = make_optimizer(optimizer), batch_size
    return Step(network, *step, axis_name=layout.axis_name)


def _batch(config: CollectivesConfig, layout: Layout) -> dict[str, Any]:
    _, data = _options(config)
    rows = config.examples * layout.data_devices
    image = (data.image_size, data.image_size, data.channels)
    return layout.batch_shapes(rows, image, "float32")


def _layer(collective: hlo.Collective, names: set[str]) -> str | None:
    """The batch normalization that an all-reduce is part of."""
    if collective.kind != "all-reduce":
        return None
    inside = (n for n in names if f"/{n}/" in f"{collective.source}/")
    return next(inside, None)


def _most(found: list[tuple[hlo.Collective, str]]) -> int:
    return max(Counter(name for _, name in found).values(), default=0)


def _count(found: list[hlo.Collective], kind: str) -> int:
    return sum(c.kind == kind for c in found)


def _check(config: CollectivesConfig) -> None:
    check_limits(config)
    if not config.devices or min(config.devices) < 2:
        raise UserError(
            f"`--devices` must be numbers of at least 2, got {config.devices}. Pass "
            "for example --devices 8 64."
        )
