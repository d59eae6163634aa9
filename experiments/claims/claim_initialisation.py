"""E03: batch normalization makes training less sensitive to the initial weights.

Source: Ioffe and Szegedy, 2015, section 3.3; Cooijmans et al., Recurrent batch
normalization, 2016, for the other side: the start of gamma becomes what matters.

Measured: on the digits, three hidden ReLU layers whose He weights are multiplied by
0.01 to 100; momentum 0.9, three learning rates of which each arm and factor has its
best. A factor works if at least 85 % of the test rows are right. Beside it: gamma from
0.01 to 10 with ordinary weights.

Refuted if: batch normalization adds less than one decade of factors that work.

Command: python -m experiments run initialisation --preset quick
Runtime: quick about 60 s on two busy cores (standard: twice that).
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "ln", "bn gamma")
DECADES = tuple(10.0**e for e in np.arange(-2, 2.01, 0.5))
RATES = (0.01, 0.1, 1.0)
LEVEL = 0.85


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net from every start."""
    number = "scale" if arm == "bn gamma" else "gain"
    factors = DECADES[2:-1] if arm == "bn gamma" else DECADES
    cells = [
        {number: round(factor, 6), "lr": lr}
        for factor in setting.pick(factors[::2], factors)
        for lr in setting.pick(RATES[1:2], RATES)
    ]
    plan = Plan(
        mlp(norms.NORMS[arm.split()[0]]()),
        splits.digits(starts=setting.starts, seed=setting.seed),
        cells=cells,
        steps=setting.pick(40, 300),
        batch=64,
        evals=setting.pick(2, 3),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def decades(table: Table, arm: str, over: str = "gain") -> np.ndarray:
    """Returns how many decades of factors work in every start."""
    found = table.over(arm, over)
    step = float(np.diff(np.log10(list(found)))[0])
    return step * np.sum([values >= LEVEL for values in found.values()], 0)


def draw(figure, table: Table) -> None:
    """Draws accuracy against the factor of the weights, and of gamma."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, arms, over in ((left, ARMS[:3], "gain"), (right, ARMS[3:], "scale")):
        for arm in arms:
            found = table.over(arm, over)
            means = [values.mean() for values in found.values()]
            label = figures.NAMES.get(arm, "gamma")
            axes.plot(
                list(found), means, "o-", ms=4, label=label, color=figures.color(arm)
            )
        axes.set_xscale("log")
        axes.legend()
    left.set_xlabel("initial weights / He's")
    right.set_xlabel("initial gamma")
    left.set_ylabel("test accuracy, best rate")


EXPERIMENT = Experiment(
    number="E03",
    name="initialisation",
    title="Less sensitive to initial weights",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C03", lambda t: decades(t, "bn") - decades(t, "none")),
        Rule("C03.layer", lambda t: decades(t, "bn") - decades(t, "ln")),
    ),
    draw=draw,
    alt="Test accuracy against the scale of the initial weights and of gamma.",
)
