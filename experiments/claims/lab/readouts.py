"""Numbers that are read from curves and grids, between their points."""

import numpy as np


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
    found = _where_first(height, np.broadcast_to(steps, values.shape))[:, 0]
    return np.where(np.isnan(found), np.inf, found)


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


def at_level(loss: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """Returns `values` where `loss` first is at most `level`, nan where it never is.

    Both are (..., points); read linearly in log loss between points. One point is left.
    """
    log = np.log(np.maximum(np.nan_to_num(loss, nan=1e9), 1e-9)) - np.log(level)
    return _where_first(-log, values)


def _where_first(height: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns `values` where `height` first is zero or more, nan where it never is.

    Both are (..., points); read linearly between points. One point is left.
    """
    there = height >= 0
    n = there.argmax(-1)[..., None]
    before = np.maximum(n - 1, 0)

    def at(x: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, index, -1)

    rise = at(height, n) - at(height, before)
    known = np.isfinite(rise) & (rise > 0)
    share = np.where(known, -at(height, before) / np.where(known, rise, 1), 1.0)
    found = at(values, before) + share * (at(values, n) - at(values, before))
    return np.where(there.any(-1, keepdims=True), found, np.nan)
