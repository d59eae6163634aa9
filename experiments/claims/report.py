"""Makes one page of a run: `report.html`, and every figure as SVG and PNG.

Run: python -m experiments report runs/claims
"""

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.claims import chosen
from experiments.claims.lab import figures, forest, page
from experiments.claims.lab.experiment import Experiment
from experiments.claims.lab.table import Table
from experiments.claims.verify import FAILED, verify
from experiments.common import files
from experiments.common.errors import writing

_FILES = (
    "config.json",
    "environment.json",
    "effects.json",
    "verdicts.json",
    "timings.json",
)


@dataclass(frozen=True)
class ReportConfig:
    """Makes one page of a run, with figures."""

    directory: tyro.conf.Positional[Path] = Path("runs/claims")
    """The `--out` of a run."""


def main(config: ReportConfig) -> int:
    """Writes the page and returns the exit code."""
    out = config.directory
    problems = verify(out, unfinished=True)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return FAILED
    loaded = {name: json.loads((out / name).read_text()) for name in _FILES}
    wanted = chosen(tuple(loaded["config.json"]["names"]))
    drawn = _draw(out, wanted, loaded["verdicts.json"]["verdicts"])
    target = out / "report.html"
    files.write_bytes(target, page.page(wanted, drawn, loaded).encode())
    print(target)
    return 0


def _draw(out: Path, wanted: list[Experiment], verdicts: list[dict]) -> dict[str, str]:
    """Draws every figure into `out/figures`; returns them for the page."""
    rows: dict[str, list] = {}
    for line in (out / "runs.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["experiment"], []).append(row)
    draws: dict[str, Any] = {
        one.name: lambda figure, one=one: one.draw(figure, Table(rows[one.name]))
        for one in wanted
        if one.name in rows
    }
    inline = {name: _save(out, name, draw, salt=name) for name, draw in draws.items()}
    draw = functools.partial(forest.draw, verdicts=verdicts)
    size = (9.0, forest.height(verdicts))
    return {"forest": _save(out, "forest", draw, salt="forest", size=size), **inline}


def _save(out: Path, name: str, draw: Any, **options: Any) -> str:
    directory = out / "figures"
    with writing(out, option="DIR"):
        directory.mkdir(exist_ok=True)
    inline, svg, png = figures.render(draw, **options)
    files.write_bytes(directory / f"{name}.svg", svg)
    files.write_bytes(directory / f"{name}.png", png)
    return inline
