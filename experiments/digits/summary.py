"""Numbers that sum up the learning curves of a run."""

import math
from typing import Any

import msgspec
import numpy as np

from experiments.claims.lab import rows as lab
from experiments.claims.lab.statistics import effect
from experiments.claims.lab.table import Table

THRESHOLD = 0.95
_SERIES = ("step", "seconds", "train_loss", "test_loss", "test_accuracy")


class Measured(msgspec.Struct):
    """The contents of a checkpoint beside the states.

    Attributes:
        rows: the lines of `metrics.jsonl`.
        train_seconds: arm to the time its steps took, all starts together.
        compile_seconds: arm to the time its compilation took in the latest session.
    """

    rows: list[dict[str, Any]]
    train_seconds: dict[str, float]
    compile_seconds: dict[str, float]


class Spread(msgspec.Struct):
    """Median and range over the starts; infinite where a start did not get there."""

    median: float
    low: float
    high: float


class Interval(msgspec.Struct):
    """A mean over the starts and its 95 % t interval; nan from a single start.

    The interval is cut where the values must end: a share is in [0, 1].
    """

    mean: float
    low: float
    high: float


class Arm(msgspec.Struct):
    """The results of one arm.

    Attributes:
        starts: how many there were.
        reached: how many of them reached the threshold.
        diverged: how many ended with a loss that is not finite.
        steps, seconds: until the first evaluation at or above the threshold.
        accuracy: at the last step.
        train_seconds: training time of all starts together.
    """

    starts: int
    reached: int
    diverged: int
    steps: Spread
    seconds: Spread
    accuracy: Interval
    train_seconds: float


def table(rows: list[dict], *, lr: float) -> Table:
    """Returns the lines of `metrics.jsonl` as series of each arm and start."""
    own: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        own.setdefault((row["arm"], row["start"]), []).append(row)
    return Table(
        lab.row(
            *(arm, start, {"lr": lr}),
            {"test_accuracy": mine[-1]["test_accuracy"]},
            {name: [row[name] for row in mine] for name in _SERIES},
        )
        for (arm, start), mine in own.items()
    )


def summarize(found: Table, arm: str) -> Arm:
    """Returns the results of `arm`."""
    steps, seconds = (
        found.reached(arm, THRESHOLD, along=name) for name in ("step", "seconds")
    )
    return Arm(
        starts=len(steps),
        reached=int(np.isfinite(steps).sum()),
        diverged=int((~np.isfinite(found.series(arm, "test_loss")[:, -1])).sum()),
        steps=Spread(float(np.median(steps)), steps.min(), steps.max()),
        seconds=Spread(float(np.median(seconds)), seconds.min(), seconds.max()),
        accuracy=interval(found.values(arm, "test_accuracy"), 0, 1),
        train_seconds=float(found.series(arm, "seconds")[0, -1]),
    )


def interval(values: np.ndarray, lowest: float, highest: float) -> Interval:
    """Returns the mean of `values`, (S,), and its t interval within the limits."""
    found = effect(values, least=0.0)
    low, high = found.t if found.n > 1 else (math.nan, math.nan)
    return Interval(found.mean, max(low, lowest), min(high, highest))


def compare(found: Table, arm: str, plain: str) -> tuple[Interval, float, int]:
    """Compares two arms start by start.

    Returns:
        The difference of the final accuracies, how many times fewer steps `arm` takes
        to the threshold (the median over the starts where both get there), and how many
        starts these are.
    """
    gain = found.values(arm, "test_accuracy") - found.values(plain, "test_accuracy")
    mine, other = (found.reached(name, THRESHOLD) for name in (arm, plain))
    both = np.isfinite(mine) & np.isfinite(other)
    ratio = np.median(other[both] / np.maximum(mine[both], 1)) if both.any() else np.nan
    return interval(gain, -1, 1), float(ratio), int(both.sum())
