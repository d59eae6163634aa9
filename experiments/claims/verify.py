"""Checks the files of a run: their schema, that nothing is missing, that they agree.

Run: python -m experiments verify runs/claims
"""

import csv
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.claims import chosen, rules_of
from experiments.claims.lab import schema, store
from experiments.claims.lab.experiment import Experiment, blocks
from experiments.common import checksums, records
from experiments.common.errors import UserError

FAILED = 4


@dataclass(frozen=True)
class VerifyConfig:
    """Checks the files of a run and derives its verdicts again."""

    directory: tyro.conf.Positional[Path] = Path("runs/claims")
    """The `--out` of a run."""


def main(config: VerifyConfig) -> int:
    """Prints what is wrong, and returns 4 if anything is."""
    problems = verify(config.directory)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return FAILED
    print(f"{config.directory}: the files are complete and agree with each other")
    return 0


def verify(
    directory: Path, *, unfinished: bool = False, argument: str = "DIR"
) -> list[str]:
    """Returns what is wrong with the run in `directory`, one line each.

    Args:
        directory: the `--out` of a run.
        unfinished: accept experiments that have no rows at all yet.
        argument: the argument that names the directory, for errors.

    Raises:
        UserError: if there is no run.
    """
    if not (directory / "config.json").is_file():
        raise UserError(
            f"`{argument}` must hold the files of a run, got '{directory}'. Make one "
            "with: python -m experiments run."
        )
    loaded, problems = {}, []
    for name in schema.FILES:
        try:
            loaded[name] = schema.load(directory / name)
            checksums.check(directory, name)
        except records.DamagedError as error:
            problems.append(str(error))
    if problems:
        return problems
    config = loaded["config.json"]
    wanted = chosen(tuple(config["names"]))
    if config["rules"] != rules_of(wanted):
        return ["config.json: claims.toml or a claim file has changed since the run"]
    lines = loaded[store.ROWS]
    rows: dict[str, list] = {}
    for line in lines:
        rows.setdefault(line["experiment"], []).append(line)
    problems = [
        problem
        for one in wanted
        if one.name in rows or not unfinished
        for problem in _missing(one, rows, config)
    ]
    if problems:
        return problems
    try:
        effects, verdicts = store.conclude(wanted, rows, config)
        left = () if unfinished else _undecided(wanted, rows, config)
    except (LookupError, TypeError, ValueError) as error:
        return [f"{store.ROWS}: no verdicts follow from it: {error!r:.200}"]
    if left:
        return [f"{name}: is undecided and lacks its next starts" for name in left]
    loaded["summary.csv"] = _cells(loaded["summary.csv"])
    again = {
        "summary.csv": _cells(store.summary(lines)),
        "effects.json": effects,
        "verdicts.json": verdicts,
    }
    return [
        f"{name}: does not follow from {store.ROWS}"
        for name, content in again.items()
        if not same(loaded[name], content)
    ]


def same(found: Any, expected: Any) -> bool:
    """Tells whether contents agree; numbers to 1 %, as bootstraps of scipys differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return set(found) == set(expected) and all(
            same(found[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(found, expected, rel_tol=1e-2, abs_tol=1e-4)
    return found == expected


def _cells(text: str) -> list[list]:
    return [[_number(cell) for cell in row] for row in csv.reader(text.splitlines())]


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _undecided(wanted: list[Experiment], rows: dict, config: dict) -> list[str]:
    """The experiments that lack a look although one of their claims is undecided."""
    most = store.starts_of(config) * blocks(config["preset"])[-1]
    return [
        one.name
        for one in store.open_experiments(wanted, rows, config)
        if len({row["start"] for row in rows[one.name]}) < most
    ]


def _missing(experiment: Experiment, rows: dict, config: dict) -> list[str]:
    """Lists what is missing of whole looks, the same for every arm."""
    own, block = rows.get(experiment.name, []), store.starts_of(config)
    looks = [block * end for end in blocks(config["preset"])]
    most = 1 + max((row["start"] for row in own), default=-1)
    starts = most if most in looks else looks[0]
    found = []
    for arm in experiment.arms:
        mine = [row for row in own if row["arm"] == arm]
        cells = {json.dumps(row["cell"]) for row in mine}
        if {row["start"] for row in mine} != set(range(starts)):
            found.append(f"{experiment.name}: arm {arm!r} lacks starts of {starts}")
        elif len(mine) != starts * len(cells):
            found.append(
                f"{experiment.name}: arm {arm!r} lacks cells or has them twice"
            )
    return found
