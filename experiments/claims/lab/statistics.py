"""Intervals, corrections and verdicts.

A rule turns the runs into one number for each start, oriented so that the claim
predicts a large one, and names the smallest that would support the claim:

    supported     the whole interval is above the smallest effect of interest,
    contradicted  the whole interval is below it,
    inconclusive  otherwise, or if the Holm-adjusted p-value is 0.05 or more, or from
                  fewer than three starts,
    not run       there are no runs.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
_FEWEST = 3
Verdict = Literal["supported", "contradicted", "inconclusive", "not run"]


class Effect(NamedTuple):
    """A mean over the starts, its intervals, and how far it is from the threshold.

    Attributes:
        mean: of the numbers of the starts.
        low, high: the 95 % interval that decides: it covers the other two.
        bootstrap: the BCa bootstrap interval.
        t: the t interval.
        p: two-sided p-value of a t test against the smallest effect of interest.
        n: number of starts.
    """

    mean: float
    low: float
    high: float
    bootstrap: tuple[float, float]
    t: tuple[float, float]
    p: float
    n: int


def effect(values: np.ndarray, *, least: float) -> Effect:
    """Returns the effect that `values`, (starts,), show.

    With few starts the bootstrap interval is too narrow and with skewed numbers the t
    interval is wrong, so the one that decides covers both. Numbers that do not differ
    at all (exact identities) are their own interval.
    """
    values = np.asarray(values, float)
    mean, n = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if n > 1 else math.nan
    if n < 2:
        nothing = (-math.inf, math.inf)
        return Effect(mean, *nothing, nothing, nothing, 1.0, n)
    if spread <= 1e-12 * max(abs(mean), 1e-12):
        p = 0.0 if abs(mean - least) > 1e-12 else 1.0
        return Effect(mean, mean, mean, (mean, mean), (mean, mean), p, n)
    test: Any = stats.ttest_1samp(values, least)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    boot, p = bootstrap(values), float(test.pvalue)
    return Effect(mean, min(boot[0], low), max(boot[1], high), boot, (low, high), p, n)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % BCa bootstrap interval of the mean, the same every time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Few equal numbers: BCa falls back below.
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if math.isnan(low) or math.isnan(high):
        low, high = float(values.min()), float(values.max())
    return low, high


def holm(p: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number (Holm, 1979)."""
    order = np.argsort(p)
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, n in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[n]))
        adjusted[n] = highest
    return adjusted


def verdict(found: Effect | None, *, least: float, p: float) -> Verdict:
    """Returns the decision; `p` is the adjusted p-value."""
    if found is None:
        return "not run"
    if p >= 1 - CONFIDENCE or found.n < _FEWEST:
        return "inconclusive"
    if found.low > least:
        return "supported"
    return "contradicted" if found.high < least else "inconclusive"
