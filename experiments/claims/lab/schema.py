"""The contents of the files of a run: names, types, allowed values."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from experiments.claims.lab.statistics import Outcome
from experiments.common import records

SCHEMA = 2

# Of JSON also integers that no float can hold.
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | float
_Interval = list[Number | None] | None


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Measured(_Strict):
    """A row of a part: one cell and start of an arm."""

    arm: str
    cell: dict[str, Number | str]
    start: int
    metrics: dict[str, Number | None]
    series: dict[str, list[Number | list | None]]


class Row(Measured):
    """A line of `runs.jsonl.gz`: a row, and the experiment that it is of."""

    schema: Literal[2]
    experiment: str


class Part(_Strict):
    """The measurements of an arm, and the SHA-256 of its rows."""

    seconds: Number
    sha256: str
    rows: list[Measured]


class _Verdict(_Strict):
    name: str
    claim: str
    experiment: str
    text: str
    verdict: Outcome | Literal["exact", "wrong", "not run"]
    published: Literal["", "supported", "contradicted", "qualified"]
    measure: str
    in_words: str
    kind: Literal["effect", "all", "exact"]
    least: Number
    scale: Number
    mean: Number | None
    low: Number | None
    high: Number | None
    p: Number | None
    n: int | None
    p_adjusted: Number
    repeats: Number | None
    needed: int | None
    command: str


class _Effect(_Verdict):
    bootstrap: _Interval
    t: _Interval
    values: list[Number | None]


class _Concluded(_Strict):
    schema: Literal[2]
    preset: Literal["smoke", "quick", "standard"]
    seed: int
    rules: str
    family: int
    rates: int
    rates_at_an_edge: int


class _Effects(_Concluded):
    effects: list[_Effect]


class _Verdicts(_Concluded):
    verdicts: list[_Verdict]


class _Timings(_Strict):
    schema: Literal[2]
    seconds: Number
    arms: dict[str, dict[str, Number]]


class _Config(_Strict):
    names: list[str]
    preset: Literal["smoke", "quick", "standard"]
    seed: int
    data_dir: str | None
    rules: str


class _Commit(_Strict):
    commit: str
    dirty: bool


class _Environment(msgspec.Struct):
    """The part that the page shows."""

    python: str
    processor: str | None
    instructions: list[str]
    cpu_count: int | None
    packages: dict[str, str | None]
    git: _Commit | None


FILES: dict[str, Any] = {
    "config.json": _Config,
    "environment.json": _Environment,
    "runs.jsonl.gz": Row,
    "summary.csv": str,
    "effects.json": _Effects,
    "verdicts.json": _Verdicts,
    "timings.json": _Timings,
}


def load(path: Path) -> Any:
    """Returns the content of a file of a run, in lists and dictionaries.

    Raises:
        DamagedError: if it is missing, or something else than the file of this name.
    """
    kind = FILES[path.name]
    if path.suffix == ".csv":
        return records.text(path)
    if path.suffix == ".json":
        return msgspec.to_builtins(records.read(path, kind))
    rows, damage = records.lines(path, kind)
    if damage:
        raise records.DamagedError(f"'{path}' must be whole, but: {damage}.")
    return msgspec.to_builtins(rows)
