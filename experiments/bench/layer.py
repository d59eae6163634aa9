"""Time of one layer beside other libraries, and its share of the memory floor.

The floor of an operation is the bytes it must move, at the speed of a copy measured in
the same turns. The prediction is of the bytes that the compiled program says it moves.
Ratios are of medians: above one, jaxbn is faster.
"""

import math
from pathlib import Path
from statistics import geometric_mean

import jax
import jax.numpy as jnp

import jaxbn
from experiments.bench import main as bench
from experiments.bench.cases import Case, plan
from experiments.bench.compilers import hlo
from experiments.bench.peers import runs
from experiments.bench.turns import in_turns, spread
from experiments.common.progress import StepProgress
from experiments.common.tables import markdown

SECONDS = {True: 1.0, False: 1.5}  # of one case: quick, full
PEERS = ("flax", "torch", "xla")
_BOTH = "forward+backward"


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns one record a case, and Markdown: a summary, then every case."""
    records = []
    cases = plan(quick=config.quick)
    with StepProgress(len(cases)) as progress:
        for number, case in enumerate(cases):
            records.append(_record(case, seconds=SECONDS[config.quick]))
            progress.update(number + 1, f"{case.name} {case.dtype} {case.operation}")
            jax.clear_caches()
    summary, table = _summary(records), _table(records)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "layer.md").write_text(f"{summary}\n\n{table}\n")
    _plot(records, config.out / "layer.png")
    record = {"native": jaxbn.implementations()["native"] or "used", "cases": records}
    return record, summary if len(records) > 20 else f"{table}\n\n{summary}"


def _record(case: Case, *, seconds: float) -> dict:
    functions = runs(case)
    rounds = in_turns(functions, seconds=seconds, warm=True)
    times = {name: spread(values) for name, values in rounds.items()}
    mine = times["jaxbn"]["median"]
    ratios = {name: time["median"] / mine for name, time in times.items()}
    copy = times["copy"]["median"]
    size = math.prod(case.shape) * jnp.dtype(case.dtype).itemsize
    moved = {
        name: hlo.counts(run.program.as_text() or "").bytes / size
        for name, run in functions.items()
        if run.program is not None
    }
    return {
        "group": case.group,
        "shape": list(case.shape),
        "type": case.dtype,
        "operation": case.operation,
        "activation": case.activation,
        "milliseconds": times,
        "ratios": ratios,
        "bytes / x": moved,
        "predicted": {n: m / 2 * copy / times[n]["median"] for n, m in moved.items()},
        "floor": case.floor / 2 * copy / mine,
        "copy, GB/s": 1e-6 * 2 * size / copy,
    }


def _key(record: dict) -> tuple[str, ...]:
    return tuple(record[k] for k in ("type", "operation", "activation"))


def _is_bar(record: dict) -> bool:
    """Tells whether the case counts for the geometric means of docs/benchmarks.md."""
    return record["group"] in ("ResNet-50", "dense", "quick")


def _summary(records: list[dict]) -> str:
    """Geometric means over ResNet-50 and dense shapes, for each kind of operation."""
    header = ["type", "operation", "activation", "shapes"]
    header += [f"{name} / jaxbn" for name in PEERS]
    header += ["smallest xla / jaxbn", "share of the floor"]
    header += ["jaxbn: bytes / x", "predicted / measured", "flax: the same two"]
    rows = []
    chosen = list(filter(_is_bar, records))
    for key in dict.fromkeys(map(_key, chosen)):
        mine = [r for r in chosen if _key(r) == key]
        means = [_mean_ratio(mine, name) for name in PEERS]
        least = min(r["ratios"]["xla"] for r in mine)
        floor = geometric_mean(r["floor"] for r in mine)
        figures = [*means, f"{least:.2f}", f"{100 * floor:.0f} %"]
        figures += [*_predicted(mine, "jaxbn"), ", ".join(_predicted(mine, "flax"))]
        rows.append([*key, str(len(mine)), *figures])
    lines = markdown(header, rows)
    everyone = [r for r in records if r["group"] == "all libraries"]
    return f"{lines}\n\n{_others(everyone)}" if everyone else lines


def _predicted(records: list[dict], name: str) -> list[str]:
    """Geometric means of the bytes over x, and of predicted over measured times."""
    kinds = ("bytes / x", "predicted")
    return [f"{geometric_mean(r[kind][name] for r in records):.2f}" for kind in kinds]


def _others(records: list[dict]) -> str:
    """Ratios to every library, forward and backward."""
    names = list(dict.fromkeys(n for r in records for n in r["ratios"]))
    names = [name for name in names if name not in ("copy", "jaxbn")]
    rows = [
        [_shape(r), r["type"], *(_ratio(r, name) for name in names)] for r in records
    ]
    return markdown(["shape", "type", *(f"{n} / jaxbn" for n in names)], rows)


def _mean_ratio(records: list[dict], name: str) -> str:
    found = [r["ratios"][name] for r in records if name in r["ratios"]]
    return f"{geometric_mean(found):.2f}" if found else "-"


def _ratio(record: dict, name: str) -> str:
    return f"{record['ratios'][name]:.2f}" if name in record["ratios"] else "-"


def _shape(record: dict) -> str:
    return "x".join(map(str, record["shape"]))


def _table(records: list[dict]) -> str:
    header = ["shape", "type", "operation", "activation", "jaxbn, ms"]
    header += [f"{name} / jaxbn" for name in PEERS]
    rows = []
    for record in records:
        time = record["milliseconds"]["jaxbn"]
        spread = f"{time['lower quartile']:.2f}-{time['upper quartile']:.2f}"
        figures = [f"{time['median']:.2f} ({spread})"]
        figures += [_ratio(record, name) for name in PEERS]
        floor = f"{100 * record['floor']:.0f} %"
        rows.append([_shape(record), *_key(record), *figures, floor])
    return markdown([*header, "share of the floor"], rows)


def _plot(records: list[dict], path: Path) -> None:
    """Bars of forward and backward: share of the floor that each library reaches."""
    from matplotlib.figure import Figure

    chosen = [r for r in records if _is_bar(r) and r["operation"] == _BOTH]
    chosen = [r for r in chosen if r["activation"] == "none"]
    dtypes = list(dict.fromkeys(r["type"] for r in chosen))
    figure = Figure(figsize=(10, 3.2 * len(dtypes)), layout="constrained")
    for axes, dtype in zip(
        figure.subplots(len(dtypes), squeeze=False)[:, 0], dtypes, strict=True
    ):
        mine = [r for r in chosen if r["type"] == dtype]
        for offset, name in enumerate(("jaxbn", *PEERS)):
            slower = [r["ratios"].get(name, math.inf) for r in mine]
            shares = [100 * r["floor"] / s for r, s in zip(mine, slower, strict=True)]
            places = [i + 0.2 * (offset - 1.5) for i in range(len(mine))]
            axes.bar(places, shares, 0.2, label=name)
        axes.axhline(100, color="black", linewidth=0.8)
        axes.set_xticks(range(len(mine)), map(_shape, mine), rotation=60, ha="right")
        axes.set_ylabel(f"{dtype}\n% of the copy bandwidth")
        axes.legend(ncols=4, fontsize="small")
    figure.suptitle("Forward and backward: bytes that must be moved, per second")
    figure.savefig(path, dpi=120)
