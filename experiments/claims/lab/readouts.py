"""Numbers that are read from curves and grids, between their points."""

from collections.abc import Sequence

import numpy as np

from experiments.claims.lab.table import Table


def first_at(
    steps: np.ndarray, values: np.ndarray, level: float, *, rising: bool = True
) -> np.ndarray:
    """Returns the step where each curve first is at `level`, or infinity.

    Args:
        steps: (points,), increasing.
        values: (curves, points); read linearly between the points.
        level: to be reached.
        rising: whether from below.
    """
    height = (values - level) * (1 if rising else -1)
    there = np.nan_to_num(height, nan=-1.0) >= 0
    n = there.argmax(1)
    one, before = np.arange(len(values)), np.maximum(n - 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = -height[one, before] / (height[one, n] - height[one, before])
    share = np.where((n > 0) & np.isfinite(share), share, 1.0)
    found = steps[before] + share * (steps[n] - steps[before])
    return np.where(there.any(1), found, np.inf)


def good_range(
    positions: np.ndarray, values: np.ndarray, within: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and the highest position whose value is good enough.

    Good is what is at most `within` below the best of the same column. The ends are
    read linearly between positions; nan where the grid ends before what is good does.

    Args:
        positions: (points,), increasing.
        values: (points, starts).
        within: how much may be lost, the same for all or of each start.
    """
    level = values.max(0) - within
    ends = []
    for order in (slice(None), slice(None, None, -1)):
        where, height = positions[order], (values - level)[order]
        n = (height >= 0).argmax(0)
        one = np.arange(values.shape[1])
        low, high = height[np.maximum(n - 1, 0), one], height[n, one]
        share = np.where(n > 0, high / np.where(n > 0, high - low, 1), np.nan)
        ends.append(where[n] + share * (where[np.maximum(n - 1, 0)] - where[n]))
    return ends[0], ends[1]


def at_edge(
    table: Table, arms: Sequence[str], by: str = "validation_accuracy"
) -> dict[str, bool]:
    """Tells for each choice of a learning rate whether it is an end of its grid.

    An arm chooses once for each combination of the other numbers of its cells; arms
    with a single rate choose nothing.
    """
    found = {}
    for arm in arms:
        for cell in table.cells(arm):
            others = {name: value for name, value in cell.items() if name != "lr"}
            rates = [c["lr"] for c in table.cells(arm, **others) if "lr" in c]
            if len(rates) > 1:
                name = ", ".join([arm, *(f"{k} {v}" for k, v in others.items())])
                best = table.best(arm, by, **others)["lr"]
                found[name] = best in (min(rates), max(rates))
    return found


def at_level(loss: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """Returns `values` where `loss` first is at most `level`, nan where it never is.

    Both are (..., points); read linearly in log loss between points. One point is left.
    """
    log = np.log(np.maximum(np.nan_to_num(loss, nan=1e9), 1e-9)) - np.log(level)
    there = log <= 0
    n = there.argmax(-1)[..., None]
    before = np.maximum(n - 1, 0)

    def at(x, index):
        return np.take_along_axis(x, index, -1)

    rise = at(log, before) - at(log, n)
    share = np.where(rise > 0, at(log, before) / np.where(rise > 0, rise, 1), 1.0)
    found = at(values, before) + share * (at(values, n) - at(values, before))
    return np.where(there.any(-1, keepdims=True), found, np.nan)
