"""The files of a run: what each arm measured, and what follows from it.

    config.json       preset, seed, experiments, and the SHA-256 of the rules
    environment.json  processor, versions, devices, commit
    parts/            rows of every arm and block of starts: where `--resume` goes on
    runs.jsonl.gz     all of them, one line per arm, cell and start
    summary.csv       mean and range over the starts
    effects.json      every rule, with its intervals and the number of each start
    verdicts.json     the rules that decide a claim
    timings.json      seconds of every arm; the only file that differs between runs

Every file but `timings.json` and the measured times of `cost` is the same, bit for bit,
for the same seed on the same machine at the same commit. On another processor bits
differ; verdicts should not.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from experiments.claims.lab import schema
from experiments.claims.lab.decision import Decision, decide
from experiments.claims.lab.experiment import Experiment, Setting, blocks
from experiments.claims.lab.rows import Row, plain
from experiments.claims.lab.rules import Rule, claims
from experiments.claims.lab.statistics import Effect
from experiments.claims.lab.table import Table
from experiments.claims.lab.words import in_words
from experiments.common import checksums, files, records

ROWS = "runs.jsonl.gz"
_STEADY = (ROWS, "summary.csv", "effects.json", "verdicts.json")


def part(out: Path, experiment: Experiment, arm: str, block: int = 0) -> Path:
    """Returns where the rows of an arm in one block of starts are stored."""
    folder = out / "parts" / experiment.name / str(block)
    return folder / f"{arm.replace(' ', '_')}.json"


def save_part(path: Path, rows: list[Row], seconds: float) -> None:
    """Stores what an arm measured, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"seconds": round(seconds, 3), "sha256": _sha256(rows)}
    files.write_bytes(path, json.dumps(head | {"rows": rows}, allow_nan=False).encode())


def load_part(path: Path) -> dict[str, Any] | None:
    """Returns what `save_part` stored; None if it is not there, or damaged."""
    try:
        content = msgspec.to_builtins(records.read(path, schema.Part))
    except records.DamagedError:
        return None
    return content if content["sha256"] == _sha256(content["rows"]) else None


def _sha256(rows: list[Row]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def collect(
    out: Path, chosen: Sequence[Experiment], config: dict[str, Any]
) -> dict[str, list[Row]]:
    """Returns the rows of every experiment, of the looks that are complete.

    The starts of a block are numbered after those of the blocks before.
    """
    starts, found = starts_of(config), {}
    for experiment in chosen:
        rows: list[Row] = []
        begun = 0
        for end in blocks(config["preset"]):
            wanted = [(arm, b) for b in range(begun, end) for arm in experiment.arms]
            parts = [load_part(part(out, experiment, *one)) for one in wanted]
            whole = [one["rows"] for one in parts if one is not None]
            if len(whole) < len(parts):
                break
            rows += [
                {**row, "start": row["start"] + block * starts}
                for own, (_, block) in zip(whole, wanted, strict=True)
                for row in own
            ]
            begun = end
        if rows:
            found[experiment.name] = rows
    return found


def starts_of(config: dict[str, Any]) -> int:
    """Returns the number of starts of a block."""
    return Setting(config["preset"], config["seed"]).starts


def write(out: Path, chosen: Sequence[Experiment], config: dict[str, Any]) -> dict:
    """Writes all that follows from the parts and returns `verdicts.json`."""
    rows = collect(out, chosen, config)
    lines = [
        {"schema": schema.SCHEMA, "experiment": name, **row}
        for name, own in rows.items()
        for row in own
    ]
    files.write_lines(out / ROWS, lines)
    files.write_bytes(out / "summary.csv", summary(lines).encode())
    effects, verdicts = conclude(chosen, rows, config)
    files.write_json(out / "effects.json", effects)
    files.write_json(out / "verdicts.json", verdicts)
    files.write_json(out / "timings.json", _timings(out, chosen))
    checksums.seal(out, *_STEADY)
    return verdicts


def decisions(
    chosen: Sequence[Experiment], rows: dict[str, list[Row]], config: dict[str, Any]
) -> dict[str, Decision]:
    """Returns the decision of every rule from what it gives at every look."""
    starts, given = starts_of(config), {}
    for experiment in chosen:
        own = rows.get(experiment.name, [])
        most = 1 + max((row["start"] for row in own), default=-1)
        ends = [starts * end for end in blocks(config["preset"])]
        tables = [
            Table(row for row in own if row["start"] < end)
            for end in ends
            if end <= most
        ]
        for rule in experiment.rules:
            given[rule.name] = rule, [np.asarray(rule.values(t)) for t in tables]
    return decide(given)


def open_experiments(
    chosen: Sequence[Experiment], rows: dict[str, list[Row]], config: dict[str, Any]
) -> list[Experiment]:
    """Returns the experiments that the next look is for: a claim is undecided."""
    found = decisions(chosen, rows, config)
    return [
        one
        for one in chosen
        if any(found[rule.name].outcome == "undecided" for rule in one.claims)
    ]


def conclude(
    chosen: Sequence[Experiment], rows: dict[str, list[Row]], config: dict[str, Any]
) -> tuple[dict, dict]:
    """Returns what `effects.json` and `verdicts.json` hold."""
    found = decisions(chosen, rows, config)
    lines = [
        _line(experiment, rule, found[rule.name], config)
        for experiment in chosen
        for rule in experiment.rules
    ]
    head = {"schema": schema.SCHEMA, "preset": config["preset"], "seed": config["seed"]}
    head |= {"rules": config["rules"], "family": len(claims().family)}
    rates = [
        edge
        for one in chosen
        for _, edge in Table(rows.get(one.name, ())).rates(one.by)
    ]
    head |= {"rates": len(rates), "rates_at_an_edge": sum(rates)}
    long = ("bootstrap", "t", "values")
    headlines = [
        {key: value for key, value in line.items() if key not in long}
        for line in lines
        if line["name"] == line["claim"]
    ]
    return {**head, "effects": lines}, {**head, "verdicts": headlines}


def summary(lines: Sequence[dict]) -> str:
    """Returns `summary.csv`: mean and range over the starts for every cell."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for line in lines:
        cell = " ".join(f"{key}={value}" for key, value in line["cell"].items())
        for metric, value in line["metrics"].items():
            key = line["experiment"], line["arm"], cell, metric
            groups.setdefault(key, []).append(math.nan if value is None else value)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("experiment", "arm", "cell", "metric", "n", "mean", "lowest", "highest")
    )
    for key, values in groups.items():
        numbers = np.mean(values), min(values), max(values)
        table.writerow((*key, len(values), *(plain(number) for number in numbers)))
    return text.getvalue()


def command(experiment: Experiment, config: dict[str, Any]) -> str:
    """Returns the command that measures an experiment again."""
    words = ["python -m experiments run", experiment.name, "--preset", config["preset"]]
    return " ".join([*words, "--seed", str(config["seed"])])


def _line(
    experiment: Experiment, rule: Rule, decision: Decision, config: dict[str, Any]
) -> dict:
    numbers: dict[str, Any] = dict.fromkeys(Effect._fields)
    if decision.found:
        kept = decision.found._asdict() | {"shown": ""}
        numbers = {key: plain(value) for key, value in kept.items()}
    del numbers["shown"]
    entry = rule.entry
    return {
        "name": rule.name,
        "claim": rule.claim,
        "experiment": experiment.name,
        "text": entry.text,
        "verdict": decision.outcome,
        "published": entry.published,
        "measure": entry.measure,
        "in_words": in_words(entry, decision.found),
        "kind": entry.kind,
        "least": plain(entry.least),
        "scale": entry.scale or entry.least,
        **numbers,
        "p_adjusted": plain(decision.adjusted),
        "repeats": decision.repeats,
        "needed": decision.needed,
        "values": plain(decision.values),
        "command": command(experiment, config),
    }


def _timings(out: Path, chosen: Sequence[Experiment]) -> dict:
    """The seconds of every arm, in all its blocks."""
    found: dict[str, dict[str, float]] = {}
    for experiment in chosen:
        for arm in experiment.arms:
            name = part(out, experiment, arm).name
            paths = (out / "parts" / experiment.name).glob(f"*/{name}")
            seconds = [one["seconds"] for one in map(load_part, paths) if one]
            if seconds:
                own = found.setdefault(experiment.name, {})
                own[arm] = round(sum(seconds), 3)
    total = sum(sum(arms.values()) for arms in found.values())
    return {"schema": schema.SCHEMA, "seconds": round(total, 1), "arms": found}
