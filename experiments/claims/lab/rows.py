"""The lines of `runs.jsonl.gz`: one for each arm, cell and start."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims.lab.plan import Outcome

CHANCE = 0.1
_LOST = 23.0  # ten times the loss of guessing among ten classes

Row = dict[str, Any]


def rows_of(outcome: Outcome, arm: str, *, series: Sequence[str] = ()) -> list[Row]:
    """Returns one row for each start and cell: final numbers, and the named series.

    A run is diverged if its last training loss is not finite or ten times that of
    guessing; then its accuracies are those of guessing.
    """
    found = []
    starts = len(outcome.series["train_loss"])
    for start in range(starts):
        for n, cell in enumerate(outcome.cells):
            mine = {name: v[start, n] for name, v in outcome.series.items()}
            metrics = _metrics(mine)
            shown = {name: plain(mine[name]) for name in series}
            if shown:
                shown = {"step": outcome.steps.tolist(), **shown}
            found.append(row(arm, start, cell, metrics, shown))
    return found


def row(
    arm: str,
    start: int,
    cell: Mapping[str, Any],
    metrics: Mapping[str, Any],
    series: Mapping[str, Any] | None = None,
) -> Row:
    """Returns one line of `runs.jsonl.gz`; numbers that are not finite become null."""
    return {
        "arm": arm,
        "cell": {key: plain(value) for key, value in cell.items()},
        "start": start,
        "metrics": {key: plain(value) for key, value in metrics.items()},
        "series": {key: plain(value) for key, value in (series or {}).items()},
    }


def plain(value: Any) -> Any:
    """Returns numbers and arrays for JSON, six digits each."""
    if isinstance(value, str):
        return value
    array = np.asarray(value, float)
    if array.ndim:
        return [plain(item) for item in array]
    short = float(f"{array:.6g}")
    if not np.isfinite(short):
        return None
    # Of a loss that ran away an integer would be larger than readers take.
    return int(short) if abs(short) < 2**53 and short == int(short) else short


def _metrics(mine: dict[str, np.ndarray]) -> dict[str, float]:
    last = float(mine["train_loss"][-1])
    diverged = not np.isfinite(last) or last > _LOST
    found = {name: float(values[-1]) for name, values in mine.items()}
    found |= {
        "validation_area": float(mine["validation_accuracy"].mean()),
        "test_area": float(mine["test_accuracy"].mean()),
        "diverged": float(diverged),
    }
    if diverged:
        found |= {name: CHANCE for name in found if name.endswith("_accuracy")}
    return found
