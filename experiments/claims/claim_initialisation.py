"""E03: batch normalization makes training less sensitive to the initial weights.

Source: Ioffe and Szegedy, 2015, section 3.3; Cooijmans et al., Recurrent batch
normalization, 2016, for the other side: the start of gamma becomes what matters.

Measured: on MNIST-1D, three hidden ReLU layers whose He weights are multiplied by
0.001 to 100; momentum 0.9, five learning rates of which each arm and factor has its
best. A factor works if at least 40 % of the test rows are right; where the accuracy
crosses that line is read between the factors. Beside it: gamma from 0.01 to 10 with
ordinary weights.

Refuted if: batch normalization adds less than one decade of factors that work.

Command: python -m experiments run initialisation --preset quick
Runtime: quick about 310 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.readouts import good_range
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "ln", "bn gamma")
DECADES = tuple(10.0**e for e in np.arange(-3, 2.01, 0.5))
RATES = (3e-4, 0.003, 0.03, 0.1, 0.3)
LEVEL = 0.4


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net from every start."""
    number = "scale" if arm == "bn gamma" else "gain"
    factors = DECADES[2:-2] if arm == "bn gamma" else DECADES
    cells = [
        {number: round(factor, 6), "lr": lr}
        for factor in setting.pick(factors[::2], factors)
        for lr in setting.pick(RATES[2:3], RATES)
    ]
    plan = Plan(
        mlp(norms.NORMS[arm.split()[0]]()),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=cells,
        steps=setting.pick(40, 400),
        batch=64,
        evals=2,
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def decades(table: Table, arm: str) -> np.ndarray:
    """Returns how many decades of factors work in every start, at most the grid."""
    found = table.over(arm, "gain")
    values, grid = np.stack(list(found.values())), np.log10(list(found))
    low, high = good_range(grid, values, values.max(0) - LEVEL)
    low, high = np.where(np.isnan(low), grid[0], low), np.nan_to_num(high, nan=grid[-1])
    return np.where(values.max(0) >= LEVEL, high - low, 0)


def more(other: str):
    """Returns the rule's number: decades with batch normalization minus another's."""
    return lambda t: decades(t, "bn") - decades(t, other)


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
    rules=(Rule("C03", more("none")), Rule("C03.layer", more("ln"))),
    draw=draw,
    alt="Test accuracy against the scale of the initial weights and of gamma.",
)
