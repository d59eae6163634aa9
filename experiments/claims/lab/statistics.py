"""Intervals, outcomes and corrections.

A rule turns the runs into one number for each start, large if the claim holds, and
names the smallest mean that matters, `least`. There are one-sided t tests of three
outcomes:

    supported   the mean is above `least`,
    reversed    it is below minus `least`,
    negligible  it is between the two (two one-sided tests: Schuirmann, 1987),
    undecided   none of them, or from fewer than three starts.

Not more than one can be true, so the p-value of the decision is twice the smallest
(Goeman, Solari and Stijnen, 2010, test all three at once). An outcome must also be what
the 95 % interval shows, which covers the t interval and the BCa bootstrap.

A claim of many parts ("with all architectures") is supported if every part is, each at
the whole level (intersection-union: Berger, 1982), and reversed if one part is, after
Bonferroni's correction for their number.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
POWER = 0.9
_FEWEST, _MOST = 3, 100_000
Outcome = Literal["supported", "reversed", "negligible", "undecided"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "reversed", "negligible")


class Effect(NamedTuple):
    """A mean over the starts, its intervals, and what they show.

    Attributes:
        mean: of the numbers of the starts; of the smallest part if there are many.
        low, high: the 95 % interval that decides: it covers the other two.
        bootstrap: the BCa bootstrap interval.
        t: the t interval.
        p: p-value of the decision, before any correction.
        n: number of starts.
        shown: the outcome that the interval shows, before any correction.
    """

    mean: float
    low: float
    high: float
    bootstrap: tuple[float, float]
    t: tuple[float, float]
    p: float
    n: int
    shown: Outcome


def effect(values: np.ndarray, *, least: float) -> Effect:
    """Returns the effect that `values`, (starts,) or (parts, starts), show.

    With few starts the bootstrap interval is too narrow and with skewed numbers the t
    interval is wrong, so the one that decides covers both. Of many parts the interval
    is that of the smallest mean: its upper end is corrected for their number.
    """
    parts = np.atleast_2d(np.asarray(values, float))
    mean, n = float(parts.mean(1).min()), parts.shape[1]
    if n < 2 or not np.isfinite(parts).all():
        nothing = (-math.inf, math.inf)
        return Effect(mean, *nothing, nothing, nothing, 1.0, n, "undecided")
    wide = 1 - (1 - CONFIDENCE) / len(parts)
    boots, ts = zip(*(_intervals(one, wide) for one in parts), strict=True)
    boot, t = (
        (min(low for low, _ in ends), min(high for _, high in ends))
        for ends in (boots, ts)
    )
    low, high = min(boot[0], t[0]), max(boot[1], t[1])
    p = min(1.0, 2 * float(sided(parts, least=least).min()))
    shown: Outcome = "undecided"
    if low > least:
        shown = "supported"
    elif high < -abs(least):
        shown = "reversed"
    elif -least < low and high < least:
        shown = "negligible"
    return Effect(mean, low, high, boot, t, p, n, shown)


def sided(parts: np.ndarray, *, least: float) -> np.ndarray:
    """Returns the one-sided p-values of the three outcomes, (3, ...).

    Args:
        parts: numbers (..., parts, starts).
        least: the smallest mean that matters. Without one (zero, or negative: what a
            claim that nothing is lost tolerates) nothing is negligible.

    Numbers that do not differ have the p-value of the sign test, not of a t test whose
    spread happens to be zero.
    """
    n = parts.shape[-1]
    mean, error = parts.mean(-1), parts.std(-1, ddof=1) / math.sqrt(n)
    flat = error <= 1e-12 * np.maximum(np.abs(mean), 1e-12)
    error = np.where(flat, 1.0, error)

    def above(distance: np.ndarray) -> np.ndarray:
        sign = np.where(distance > 1e-12, 0.5**n, 1.0)
        return np.where(flat, sign, stats.t.sf(distance / error, n - 1))

    supported = above(mean - least).max(-1)
    lowered = above(-abs(least) - mean).min(-1) * parts.shape[-2]
    inside = np.maximum(above(least - mean), above(mean + least)).max(-1)
    return np.stack([supported, lowered, inside])


def outcome(found: Effect, p: float) -> Outcome:
    """Returns the decision; `p` is the corrected p-value."""
    return found.shown if p < 1 - CONFIDENCE and found.n >= _FEWEST else "undecided"


def repeats(values: np.ndarray, decided: str, *, least: float, factor: float) -> float:
    """Returns how often the decision is the same when starts are drawn again.

    A bootstrap over the starts: as many of them as there are, with replacement, decided
    by t tests whose p-values are corrected by the same `factor`.
    """
    parts = np.atleast_2d(values)
    draws = np.random.default_rng(0).integers(parts.shape[1], size=(2000, len(parts.T)))
    p = 2 * factor * sided(parts[:, draws].swapaxes(0, 1), least=least)
    words = np.where(p.min(0) < 1 - CONFIDENCE, p.argmin(0), len(OUTCOMES))
    return float(np.mean(np.array([*OUTCOMES, "undecided"])[words] == decided))


def needed(values: np.ndarray, *, least: float, factor: float) -> int | None:
    """Returns how many starts would decide, with a probability of 90 %.

    That is if mean and spread stay as they are; None if not even 100 000 would.
    """
    parts = np.atleast_2d(values)
    smallest = parts[parts.mean(1).argmin()]
    mean, spread = smallest.mean(), smallest.std(ddof=1)
    n = np.unique(np.geomspace(_FEWEST, _MOST, 2000).astype(int))
    limit = stats.t.isf((1 - CONFIDENCE) / (2 * factor), n - 1)

    def power(distance: float) -> np.ndarray:
        return stats.norm.cdf(np.sqrt(n) * distance / spread - limit)

    one_side = np.maximum(power(mean - least), power(-abs(least) - mean))
    both = power(least - mean) + power(least + mean) - 1
    enough = np.maximum(one_side, both) >= POWER
    return int(n[enough.argmax()]) if enough.any() else None


def bootstrap(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple:
    """Returns the BCa bootstrap interval of the mean, the same every time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Few equal numbers: BCa falls back below.
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if math.isnan(low) or math.isnan(high):
        low, high = float(values.min()), float(values.max())
    return low, high


def _intervals(values: np.ndarray, wide: float) -> tuple[tuple, tuple]:
    """The bootstrap and t intervals; the upper ends with the confidence `wide`."""
    mean = float(values.mean())
    if values.std() <= 1e-12 * max(abs(mean), 1e-12):
        return (mean, mean), (mean, mean)
    test: Any = stats.ttest_1samp(values, 0)
    low, high = (test.confidence_interval(c) for c in (CONFIDENCE, wide))
    boot = bootstrap(values)
    upper = boot[1] if wide == CONFIDENCE else bootstrap(values, wide)[1]
    return (boot[0], upper), (float(low.low), float(high.high))


def holm(p: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number (Holm, 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, n in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[n]))
        adjusted[n] = highest
    return adjusted
