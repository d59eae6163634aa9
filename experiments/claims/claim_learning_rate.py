"""E02: batch normalization allows larger learning rates and makes them matter less.

Source: Ioffe and Szegedy, 2015, section 3.3; Bjorck et al., Understanding batch
normalization, 2018, sections 2 and 3.

Measured: on the digits, three hidden ReLU layers of 64 units with He weights and
momentum 0.9, for learning rates from 0.0003 to 10 in steps of half a decade. A rate is
good if the test accuracy is within 5 points of the arm's best. What is compared are
positions on this grid, so all starts may agree and the interval have no width; read it
as half a decade up or down.

Refuted if: the largest good rate is not at least twice (0.3 decades) the one without
normalization; for the second rule, if the good rates do not span half a decade more.

Command: python -m experiments run learning-rate --preset quick
Runtime: quick about 30 s on two busy cores (standard: twice that).
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "ln")
RATES = tuple(float(f"{10**e:.3g}") for e in np.arange(-3.5, 1.01, 0.5))
WITHIN = 0.05


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net at every rate."""
    plan = Plan(
        mlp(norms.NORMS[arm]()),
        splits.digits(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick(RATES[::3], RATES)],
        steps=setting.pick(40, 400),
        batch=64,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def good(table: Table, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rates as decades, (rates,), and which are good, (rates, starts)."""
    accuracy = table.sweep(arm, "test_accuracy")
    decades = np.log10([cell["lr"] for cell in table.cells(arm)])
    return decades, accuracy >= accuracy.max(0) - WITHIN


def largest(table: Table, arm: str) -> np.ndarray:
    """Returns the largest good rate of every start, in decades."""
    decades, fine = good(table, arm)
    return np.where(fine, decades[:, None], -np.inf).max(0)


def width(table: Table, arm: str) -> np.ndarray:
    """Returns how many decades of rates are good in every start."""
    decades, fine = good(table, arm)
    return fine.sum(0) * (decades[1] - decades[0])


def draw(figure, table: Table) -> None:
    """Draws accuracy against the rate."""
    axes = figure.subplots()
    figures.sweep(axes, table, ARMS, over="lr")
    axes.set_xlabel("learning rate")


EXPERIMENT = Experiment(
    number="E02",
    name="learning-rate",
    title="Larger learning rates, less care in choosing them",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C02", lambda t: largest(t, "bn") - largest(t, "none")),
        Rule("C20a", lambda t: width(t, "bn") - width(t, "none")),
        Rule("C02.smallest", lambda t: t.gain("bn", "none", lr=t.cells("bn")[0]["lr"])),
        Rule("C02.layer", lambda t: largest(t, "bn") - largest(t, "ln")),
    ),
    draw=draw,
    alt="Test accuracy against the learning rate; bands are the range of the starts.",
)
