"""Decides claims: looks after 10, 20 and 40 starts, and a family that never changes.

A claim that is decided at a look stops there; the next block of starts is for
experiments with a claim that is undecided. Each look may spend a third of the errors:
p-values are multiplied by the number of looks (Bonferroni; equal parts as in Pocock,
1977). That holds for any looks that are taken and however they depend on each other.
O'Brien and Fleming's spending would leave ten starts a level of 0.0005, where the tails
of a t test are least to be trusted, and most effects here are large or not there.

Holm's correction is over all claims of `claims.toml` but identities, run or not: one
not run counts with a p-value of 1, so whoever runs one experiment alone gets a
correction at least as strict as that of the whole. Claims that stopped keep their
p-value (Ye, Li, Liu and Yao, 2013, do the same with other boundaries).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.claims.lab.rules import Rule, claims
from experiments.claims.lab.statistics import (
    Effect,
    effect,
    holm,
    needed,
    outcome,
    repeats,
)


class Decision(NamedTuple):
    """The decision of one rule.

    Attributes:
        outcome: "supported", "reversed", "negligible", "undecided"; of identities
            "exact" or "wrong"; "not run".
        found: the effect at the look where it was decided, or at the last one.
        values: the number of each start, of the smallest part if there are many.
        adjusted: p-value, for a claim of the family corrected for looks and family,
            for others as it is.
        repeats: probability that other starts give the same outcome.
        needed: number of starts an undecided one would need.
    """

    outcome: str = "not run"
    found: Effect | None = None
    values: Sequence[float] = ()
    adjusted: float = 1.0
    repeats: float | None = None
    needed: int | None = None


def decide(rules: Mapping[str, tuple[Rule, list[np.ndarray]]]) -> dict[str, Decision]:
    """Returns the decision of every rule.

    Args:
        rules: by name, with what each gives at every look that was taken, (starts,) or
            (parts, starts); an empty list if it was not run.
    """
    family = claims().family
    rules = {
        name: (rule, looks if name in family else looks[-1:])
        for name, (rule, looks) in rules.items()
    }
    effects = {
        name: [effect(values, least=rule.entry.least) for values in looks]
        for name, (rule, looks) in rules.items()
    }
    ran = {name: effects[name] for name in family if effects.get(name)}
    stops = sequential(
        {
            k: [e.p if e.shown != "undecided" else 1.0 for e in v]
            for k, v in ran.items()
        },
        family=family,
    )
    return {
        name: _decision(rule, looks, effects[name], stops.get(name))
        for name, (rule, looks) in rules.items()
    }


def sequential(
    p: Mapping[str, Sequence[float]], *, family: Sequence[str]
) -> dict[str, tuple[int, float]]:
    """Returns the look at which each claim stopped, or the last, and its adjusted p.

    Args:
        p: by claim, the p-value at every look that was taken.
        family: all claims; those that are not in `p` count as 1.
    """
    alpha, spend = claims().alpha, len(claims().looks)
    stopped: dict[str, tuple[int, float]] = {}
    now, last = {}, {name: (0, 1.0) for name in p}
    for look in range(max(map(len, p.values()), default=0)):
        for name, values in p.items():
            if name not in stopped and look < len(values):
                last[name] = look, min(1.0, spend * values[look])
        adjusted = holm([last[name][1] if name in p else 1.0 for name in family])
        by_name = dict(zip(family, adjusted, strict=True))
        now = {n: (last[n][0], by_name[n]) for n in p if n not in stopped}
        stopped |= {n: found for n, found in now.items() if found[1] < alpha}
    return {name: (now | stopped)[name] for name in p}


def _decision(
    rule: Rule,
    looks: list[np.ndarray],
    effects: list[Effect],
    stop: tuple[int, float] | None,
) -> Decision:
    if not looks:
        return Decision()
    least = rule.entry.least
    look = stop[0] if stop else len(looks) - 1
    found, values = effects[look], looks[look]
    smallest = values if values.ndim == 1 else values[values.mean(1).argmin()]
    shown = smallest.tolist()
    if rule.entry.kind == "exact":
        word = "exact" if (values > least).all() else "wrong"
        return Decision(word, found, shown)
    factor = len(claims().looks) * len(claims().family) if stop else 1.0
    p = min(1.0, factor * found.p) if stop is None else stop[1]
    word = outcome(found, p)
    if stop and word != "undecided":
        factor = max(1.0, p / found.p) if found.p > 0 else factor
    finite = np.isfinite(values).all() and values.shape[-1] > 2
    again = repeats(values, word, least=least, factor=factor) if finite else None
    more = finite and word == "undecided"
    wanted = needed(values, least=least, factor=factor) if more else None
    return Decision(word, found, shown, p, again, wanted)
