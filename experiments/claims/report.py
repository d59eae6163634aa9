"""Makes one page of a run, a summary in Markdown, and figures as SVG and PNG.

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
from experiments.claims.lab import figures, forest, page, schema, store
from experiments.claims.lab.experiment import Experiment, blocks
from experiments.claims.lab.table import Table
from experiments.claims.verify import FAILED, verify
from experiments.common import files
from experiments.common.errors import UserError, writing

FILES = (
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
    readme: Path | None = None
    """Markdown file whose table is written anew, the one after `<!-- claims of DIR -->`
    or `<!-- claims of DIR beside OTHER -->`."""
    beside: Path | None = None
    """The `--out` of a run with other starts, to compare outcomes with."""


def main(config: ReportConfig) -> int:
    """Writes the page and returns the exit code."""
    out = config.directory
    given = {"DIR": out, "--beside": config.beside}
    runs = {name: run for name, run in given.items() if run is not None}
    problems = [
        line
        for name, run in runs.items()
        for line in verify(run, unfinished=True, argument=name)
    ]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return FAILED
    loaded = {name: json.loads((out / name).read_text()) for name in FILES}
    verdicts = loaded["verdicts.json"]["verdicts"]
    other = config.beside and schema.load(config.beside / "verdicts.json")
    if other is not None:  # before anything is written
        _check_other_starts(loaded["config.json"], other, config.beside)
    wanted = chosen(tuple(loaded["config.json"]["names"]))
    drawn = _draw(out, wanted, loaded["effects.json"]["effects"])
    target = out / "report.html"
    files.write_bytes(target, page.page(wanted, drawn, loaded).encode())
    files.write_bytes(out / "README.md", page.summary(loaded).encode())
    if config.readme is not None:
        _update(config.readme, list(runs.values()), page.table(verdicts, other))
    if other is not None:
        print(f"{page.agreement(verdicts, other['verdicts'])} in {config.beside}")
    print(target)
    return 0


def _check_other_starts(config: dict, other: dict, beside: Path | None) -> None:
    distance = abs(config["seed"] - other["seed"])
    if distance < max(blocks(config["preset"])):
        raise UserError(
            f"`--beside` must be a run with other starts, got '{beside}' with seed "
            f"{other['seed']} beside seed {config['seed']}. Make one with: python -m "
            "experiments run all --seed 2000."
        )


def _update(readme: Path, runs: list[Path], table: str) -> None:
    """Replaces the table in `readme` that is of `runs`."""
    begin = f"<!-- claims of {' beside '.join(run.as_posix() for run in runs)} -->\n"
    before, found, after = readme.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise UserError(
            f"`--readme` must have the line {begin.strip()}, got '{readme}' without "
            "it. Put it there, and another comment after the table."
        )
    after = after[after.index("<!--") :] if "<!--" in after else after
    files.write_bytes(readme, f"{before}{begin}{table}\n{after}".encode())


def _draw(out: Path, wanted: list[Experiment], effects: list[dict]) -> dict[str, str]:
    """Draws every figure into `out/figures`; returns them for the page."""
    rows: dict[str, list] = {}
    for row in schema.load(out / store.ROWS):
        rows.setdefault(row["experiment"], []).append(row)

    def draw(figure: Any, one: Experiment) -> None:
        one.draw(figure, Table(rows[one.name]))

    claims = [row for row in effects if row["name"] == row["claim"]]
    found = {"forest": _forest(out, "forest", claims, starts=False)}
    for one in wanted:
        if one.name in rows:
            drawn = functools.partial(draw, one=one)
            found[one.name] = _save(out, one.name, drawn, salt=one.name)
            own = [row for row in effects if row["experiment"] == one.name]
            if any(row["kind"] != "exact" for row in own):
                found[f"{one.name} starts"] = _forest(out, f"{one.name}-starts", own)
    return found


def _forest(out: Path, name: str, effects: list[dict], *, starts: bool = True) -> str:
    """Draws decisions, but of identities, with their starts or without."""
    rows = [
        row if starts else row | {"values": ()}
        for row in effects
        if row["kind"] != "exact"
    ]
    draw = functools.partial(forest.draw, rows=rows)
    return _save(out, name, draw, salt=name, size=(5.0, forest.height(rows)))


def _save(out: Path, name: str, draw: Any, **options: Any) -> str:
    directory = out / "figures"
    with writing(out, option="DIR"):
        directory.mkdir(exist_ok=True)
    inline, svg, png = figures.render(draw, **options)
    files.write_bytes(directory / f"{name}.svg", svg)
    files.write_bytes(directory / f"{name}.png", png)
    return inline
