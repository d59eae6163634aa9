"""E02: batch normalization allows larger learning rates and makes them matter less.

Source: Ioffe and Szegedy, 2015, section 3.3; Bjorck et al., Understanding batch
normalization, 2018, sections 2 and 3.

Measured: on MNIST-1D, six hidden ReLU layers of 64 units with He weights and momentum
0.9, for learning rates from 0.002 to 6 in steps of a quarter of a decade. A rate is too
large if the test accuracy is less than half of the best of that net and start; where
accuracy crosses that line is read between the rates, so no start sits on the grid.
Care: what a rate loses against the best of its net, mean over all rates up to ten times
smaller and larger than that; and the decades of rates within ten points of the best.

Refuted if: the largest rate that works is not at least twice (0.3 decades) the one
without normalization; for the second rule, if a carelessly chosen rate does not cost
two points less with it.

Command: python -m experiments run learning-rate --preset quick
Runtime: quick about 200 s of one core.
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

ARMS = ("none", "bn", "ln")
RATES = tuple(float(f"{10**e:.3g}") for e in np.arange(-2.75, 0.76, 0.25))
WITHIN = 0.1


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net at every rate."""
    plan = Plan(
        mlp(norms.NORMS[arm](), widths=(64,) * 6),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick(RATES[::5], RATES)],
        steps=setting.pick(40, 800),
        batch=64,
        evals=2,
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def decades(table: Table, arm: str) -> np.ndarray:
    """Returns the rates of the grid as decades."""
    return np.log10([cell["lr"] for cell in table.cells(arm)])


def larger(other: str):
    """Returns the rule's number: decades between the largest rates that work."""

    def largest(table: Table, arm: str) -> np.ndarray:
        accuracy = table.sweep(arm, "test_accuracy")
        return good_range(decades(table, arm), accuracy, accuracy.max(0) / 2)[1]

    return lambda t: largest(t, "bn") - largest(t, other)


def careless(table: Table, arm: str) -> np.ndarray:
    """Returns what rates within ten times of the best lose on average."""
    best = np.log10(table.best(arm)["lr"])
    near = np.abs(decades(table, arm) - best) < 1.01
    accuracy = table.sweep(arm, "test_accuracy")
    return table.tuned(arm, "test_accuracy") - accuracy[near].mean(0)


def width(table: Table, arm: str) -> np.ndarray:
    """Returns how many decades of rates are within ten points of the best."""
    accuracy = table.sweep(arm, "test_accuracy")
    low, high = good_range(decades(table, arm), accuracy, WITHIN)
    return high - low


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
        Rule("C02", larger("none")),
        Rule("C20a", lambda t: careless(t, "none") - careless(t, "bn")),
        Rule("C20a.width", lambda t: width(t, "bn") - width(t, "none")),
        Rule("C02.smallest", lambda t: t.gain("bn", "none", lr=RATES[0])),
        Rule("C02.layer", larger("ln")),
    ),
    draw=draw,
    alt="Test accuracy against the learning rate; bands are the range of the starts.",
)
