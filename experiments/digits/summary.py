"""What the learning curves of a run say, as numbers and as a table."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

THRESHOLD = 0.95
CONFIDENCE = 0.95


class Curves(NamedTuple):
    """The measurements of one arm: T evaluations of S starts.

    Attributes:
        steps: steps taken at each evaluation, (T,).
        seconds: training time up to then, of all starts together, (T,).
        accuracy: on the test split, (T, S), 0 to 1.
        train_loss: mean since the evaluation before, (T, S); nan at step 0.
        test_loss: (T, S); nan where it was not finite.
    """

    steps: np.ndarray
    seconds: np.ndarray
    accuracy: np.ndarray
    train_loss: np.ndarray
    test_loss: np.ndarray


class Spread(NamedTuple):
    """Median and range over the starts; infinite where a start did not get there."""

    median: float
    low: float
    high: float


class Interval(NamedTuple):
    """A mean over the starts and its 95 % t interval; nan from a single start.

    The interval is cut where the values must end: a share is in [0, 1].
    """

    mean: float
    low: float
    high: float


class ArmSummary(NamedTuple):
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


def curves(rows: list[dict], arm: str) -> Curves:
    """Collects the lines of `metrics.jsonl` that belong to `arm`."""
    mine = [row for row in rows if row["arm"] == arm]
    starts = 1 + max(row["start"] for row in mine)

    def table(key: str) -> np.ndarray:
        values = [math.nan if row[key] is None else row[key] for row in mine]
        return np.array(values, float).reshape(-1, starts)

    return Curves(
        table("step")[:, 0].astype(int),
        table("seconds")[:, 0],
        table("test_accuracy"),
        table("train_loss"),
        table("test_loss"),
    )


def summarize(arm: Curves) -> ArmSummary:
    """Returns the results that `arm` shows."""
    steps, seconds = first_reached(arm, arm.steps), first_reached(arm, arm.seconds)
    return ArmSummary(
        starts=arm.accuracy.shape[1],
        reached=int(np.isfinite(steps).sum()),
        diverged=int((~np.isfinite(arm.test_loss[-1])).sum()),
        steps=Spread(float(np.median(steps)), float(steps.min()), float(steps.max())),
        seconds=Spread(
            float(np.median(seconds)), float(seconds.min()), float(seconds.max())
        ),
        accuracy=interval(arm.accuracy[-1], 0, 1),
        train_seconds=float(arm.seconds[-1]),
    )


def first_reached(arm: Curves, scale: np.ndarray) -> np.ndarray:
    """Returns `scale` where each start first is at the threshold, (S,), or infinity."""
    above = arm.accuracy >= THRESHOLD
    return np.where(above.any(axis=0), scale[above.argmax(axis=0)], np.inf)


def interval(values: np.ndarray, lowest: float, highest: float) -> Interval:
    """Returns the mean of `values`, (S,), and its t interval within the limits."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    half = float(quantile * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, max(mean - half, lowest), min(mean + half, highest))


def compare(arm: Curves, plain: Curves) -> tuple[Interval, float, int]:
    """Compares two arms start by start.

    Returns:
        The difference of the final accuracies, how many times fewer steps `arm` takes
        to the threshold (the median over the starts where both get there), and how many
        starts these are.
    """
    difference = interval(arm.accuracy[-1] - plain.accuracy[-1], -1, 1)
    mine, other = first_reached(arm, arm.steps), first_reached(plain, plain.steps)
    both = np.isfinite(mine) & np.isfinite(other)
    ratio = np.median(other[both] / np.maximum(mine[both], 1)) if both.any() else np.nan
    return difference, float(ratio), int(both.sum())
