"""Effects in words: "18 times fewer steps [17 to 19]"."""

import math
from collections.abc import Callable

from experiments.claims.lab.rules import Entry
from experiments.claims.lab.statistics import Effect

_SHOWN: dict[str, Callable[[float], float]] = {
    "x": lambda x: x,
    "100 x": lambda x: 100 * x,
    "2^x": lambda x: 2**x,
    "10^x": lambda x: 10**x,
    "-x": lambda x: 0.0 - x,
    "1 - x": lambda x: 1 - x,
}


def in_words(entry: Entry, found: Effect | None) -> str:
    """Returns an effect in its unit, with its interval unless it is an identity."""
    if found is None:
        return "—"
    if entry.kind == "exact":
        return f"{_number(entry, found.mean)} {entry.unit}"
    ends = " to ".join(_number(entry, end) for end in (found.low, found.high))
    return f"{_number(entry, found.mean)} {entry.unit} [{ends}]"


def least_in_words(entry: Entry) -> str:
    """Returns the smallest effect that matters, in its unit."""
    return f"{_number(entry, entry.least)} {entry.unit}"


def _number(entry: Entry, value: float) -> str:
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "∞" if value > 0 else "-∞"
    try:
        shown = _SHOWN[entry.shown](value)
    except OverflowError:
        return "∞"
    return f"{shown:.0f}" if abs(shown) >= 100 else f"{shown:.2g}"
