"""The files of a run: what each arm measured, and what follows from it.

    config.json       preset, seed and experiments
    environment.json  versions, devices, commit
    parts/            the rows of every arm that finished: where `--resume` goes on
    runs.jsonl        all of them, one line per arm, cell and start
    summary.csv       mean and range over the starts
    effects.json      every rule, with its intervals
    verdicts.json     the rules that decide a claim
    timings.json      seconds of every arm; the only file that differs between runs

Every file but `timings.json` and the measured times of `cost` is the same, bit for bit,
for the same seed on the same machine.
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
from experiments.claims.lab.experiment import Experiment, Rule
from experiments.claims.lab.rows import Row, plain
from experiments.claims.lab.statistics import Effect, effect, holm, verdict
from experiments.claims.lab.table import Table
from experiments.common import checksums, files, records

_STEADY = ("runs.jsonl", "summary.csv", "effects.json", "verdicts.json")


def part(out: Path, experiment: Experiment, arm: str) -> Path:
    """Returns where the rows of an arm are stored."""
    return out / "parts" / experiment.name / f"{arm.replace(' ', '_')}.json"


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


def collect(out: Path, chosen: Sequence[Experiment]) -> dict[str, list[Row]]:
    """Returns the rows of every experiment whose arms have all finished."""
    found = {}
    for experiment in chosen:
        parts = [load_part(part(out, experiment, arm)) for arm in experiment.arms]
        whole = [one["rows"] for one in parts if one is not None]
        if len(whole) == len(parts):
            found[experiment.name] = [row for rows in whole for row in rows]
    return found


def write(out: Path, chosen: Sequence[Experiment], config: dict[str, Any]) -> dict:
    """Writes all that follows from the parts and returns `verdicts.json`."""
    rows = collect(out, chosen)
    lines = [
        {"schema": schema.SCHEMA, "experiment": name, **row}
        for name, own in rows.items()
        for row in own
    ]
    files.write_lines(out / "runs.jsonl", lines)
    files.write_bytes(out / "summary.csv", summary(lines).encode())
    effects, verdicts = conclude(chosen, rows, config)
    files.write_json(out / "effects.json", effects)
    files.write_json(out / "verdicts.json", verdicts)
    files.write_json(out / "timings.json", _timings(out, chosen))
    checksums.seal(out, *_STEADY)
    return verdicts


def conclude(
    chosen: Sequence[Experiment], rows: dict[str, list[Row]], config: dict[str, Any]
) -> tuple[dict, dict]:
    """Returns what `effects.json` and `verdicts.json` hold."""
    decided = [(e, rule) for e in chosen for rule in e.rules]
    tables = {name: Table(own) for name, own in rows.items()}
    found = [
        effect(_worst(rule.values(tables[e.name])), least=rule.entry.least)
        if e.name in tables
        else None
        for e, rule in decided
    ]
    ran = [n for n, (_, rule) in enumerate(decided) if rule.headline and found[n]]
    adjusted = dict(zip(ran, holm([_p(found[n]) for n in ran]), strict=True))
    lines = [
        _line(e, rule, found[n], adjusted.get(n, _p(found[n])), config)
        for n, (e, rule) in enumerate(decided)
    ]
    head = {"schema": schema.SCHEMA, "preset": config["preset"], "seed": config["seed"]}
    short = ("bootstrap", "t", "headline")
    headlines = [
        {key: value for key, value in line.items() if key not in short}
        for line in lines
        if line["headline"]
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
    """Returns the command that reproduces an experiment."""
    words = ["python -m experiments run", experiment.name, "--preset", config["preset"]]
    return " ".join([*words, "--seed", str(config["seed"])])


def _worst(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else min(values, key=np.mean)


def _p(found: Effect | None) -> float:
    return found.p if found else 1.0


def _line(
    experiment: Experiment,
    rule: Rule,
    found: Effect | None,
    p: float,
    config: dict[str, Any],
) -> dict:
    numbers: dict[str, Any] = dict.fromkeys(Effect._fields)
    if found:
        numbers = {key: plain(value) for key, value in found._asdict().items()}
    return {
        "claim": rule.claim,
        "experiment": experiment.name,
        "text": rule.entry.text,
        "verdict": verdict(found, least=rule.entry.least, p=p),
        "literature": rule.entry.published,
        "effect": rule.entry.measure,
        "least": plain(rule.entry.least),
        "scale": rule.entry.scale or rule.entry.least,
        **numbers,
        "p_adjusted": plain(p),
        "headline": rule.headline,
        "command": command(experiment, config),
    }


def _timings(out: Path, chosen: Sequence[Experiment]) -> dict:
    found: dict[str, dict[str, float]] = {}
    for experiment in chosen:
        for arm in experiment.arms:
            one = load_part(part(out, experiment, arm))
            if one is not None:
                found.setdefault(experiment.name, {})[arm] = one["seconds"]
    total = sum(sum(arms.values()) for arms in found.values())
    return {"schema": schema.SCHEMA, "seconds": round(total, 1), "arms": found}
