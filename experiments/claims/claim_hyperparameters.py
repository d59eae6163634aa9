"""E22: fewer hyper-parameters matter with batch normalization.

Source: the notes ("reduces the sensitivity to the choice of hyperparameters").

Measured: MNIST-1D, three hidden ReLU layers of 64 units. From one setting that is good
for both nets, one number at a time is made three times smaller or larger: the learning
rate, the scale of the first weights, the memory of momentum (the steps it averages:
0.7 and 0.967 for 0.9) and weight decay. It matters if the worse of the two loses more
than ten points of test accuracy; the number that matter is counted. Beside it, for
each: what the worse costs.

Refuted if: normalization does not save half a hyper-parameter on average.

Command: python -m experiments run hyperparameters --preset quick
Runtime: quick about 50 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn")
GOOD = {"lr": 0.1, "gain": 1.0, "momentum": 0.9, "decay": 3e-4}  # found with seed 0
OTHERS = {
    "lr": (0.03, 0.3),
    "gain": (1 / 3, 3.0),
    "momentum": (0.7, 0.967),
    "decay": (1e-4, 1e-3),
}
CELLS = {n: [{**GOOD, n: round(v, 6)} for v in values] for n, values in OTHERS.items()}
MATTERS = 0.1


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains the good setting and those that differ from it in one number."""
    plan = Plan(
        mlp(norms.NORMS[arm]()),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[GOOD, *(cell for cells in CELLS.values() for cell in cells)],
        steps=setting.pick(20, 800),
        batch=100,
        evals=setting.pick(1, 2),
        seed=setting.seed,
        optimizer="decayed",
    )
    return rows_of(train(plan), arm)


def costs(table: Table, arm: str) -> dict[str, np.ndarray]:
    """Returns for each number what its worse value costs in every start."""

    def accuracy(cell: dict[str, float]) -> np.ndarray:
        return table.values(arm, "test_accuracy", **cell)

    return {
        name: accuracy(GOOD) - np.min([accuracy(cell) for cell in cells], 0)
        for name, cells in CELLS.items()
    }


def matter(table: Table, arm: str) -> np.ndarray:
    """Returns how many hyper-parameters matter in every start."""
    return np.sum([cost > MATTERS for cost in costs(table, arm).values()], 0)


def saved(name: str):
    """Returns the rule's number: how much less a badly chosen number costs."""
    return lambda t: costs(t, "none")[name] - costs(t, "bn")[name]


def draw(figure, table: Table) -> None:
    """Draws what the worse value of every number costs."""
    panels = figure.subplots(1, 2, sharex=True)
    for axes, arm in zip(panels, ARMS, strict=True):
        groups = {name: 100 * cost for name, cost in costs(table, arm).items()}
        label = f"points lost by the worse value, {figures.NAMES[arm]}"
        figures.strips(axes, groups, label=label, zero=True)


EXPERIMENT = Experiment(
    number="E22",
    name="hyperparameters",
    title="How many hyper-parameters matter",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C30", lambda t: 1.0 * (matter(t, "none") - matter(t, "bn"))),
        *(Rule(f"C30.{name}", saved(name)) for name in OTHERS),
    ),
    draw=draw,
    alt="Points lost by the worse value of four numbers, with and without it.",
)
