"""E22: fewer hyper-parameters matter with batch normalization.

Source: the notes ("reduces the sensitivity to the choice of hyperparameters").

Measured: MNIST-1D, three hidden ReLU layers of 64 units. From each arm's best setting
one number at a time is changed: the learning rate and the scale of the first weights by
up to ten times each way, momentum from 0 to 0.97, weight decay from 0 to 0.01. It
matters if the worst of its values loses more than ten points of test accuracy; the
number that matter is counted. Beside it, for each: what its worst value costs.

Refuted if: normalization does not save half a hyper-parameter on average.

Command: python -m experiments run hyperparameters --preset quick
Runtime: quick about 2 minutes on two cores.
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
BEST = {"none": 0.1, "bn": 0.3}  # learning rates, found with seed 0
ORDINARY = {"gain": 1.0, "momentum": 0.9, "decay": 0.0}
OTHERS = {
    "gain": (0.1, 0.3, 3.0, 10.0),
    "momentum": (0.0, 0.5, 0.97),
    "decay": (1e-4, 1e-3, 1e-2),
}
FACTORS = (0.1, 0.3, 3.0, 10.0)
MATTERS = 0.1


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains the best setting and those that differ from it in one number."""
    plan = Plan(
        mlp(norms.NORMS[arm]()),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[cell for cells in settings(arm).values() for cell in cells],
        steps=setting.pick(20, 800),
        batch=100,
        evals=setting.pick(1, 2),
        seed=setting.seed,
        optimizer="decayed",
    )
    return rows_of(train(plan), arm)


def settings(arm: str) -> dict[str, list[dict[str, float]]]:
    """Returns the best setting, under "best", and those beside it by their number."""
    best = {"lr": BEST[arm], **ORDINARY}
    rates = [{**best, "lr": round(factor * best["lr"], 6)} for factor in FACTORS]
    others = {n: [{**best, n: v} for v in values] for n, values in OTHERS.items()}
    return {"best": [best], "lr": rates, **others}


def costs(table: Table, arm: str) -> dict[str, np.ndarray]:
    """Returns for each number what its worst value costs in every start."""
    accuracy = {
        name: [table.values(arm, "test_accuracy", **cell) for cell in cells]
        for name, cells in settings(arm).items()
    }
    best = accuracy.pop("best")[0]
    return {name: best - np.min(values, 0) for name, values in accuracy.items()}


def matter(table: Table, arm: str) -> np.ndarray:
    """Returns how many hyper-parameters matter in every start."""
    return np.sum([cost > MATTERS for cost in costs(table, arm).values()], 0)


def saved(name: str):
    """Returns the rule's number: how much less a badly chosen number costs."""
    return lambda t: costs(t, "none")[name] - costs(t, "bn")[name]


def draw(figure, table: Table) -> None:
    """Draws what the worst value of every number costs."""
    panels = figure.subplots(1, 2, sharex=True)
    for axes, arm in zip(panels, ARMS, strict=True):
        groups = {name: 100 * cost for name, cost in costs(table, arm).items()}
        label = f"points lost by the worst value, {figures.NAMES[arm]}"
        figures.strips(axes, groups, label=label, zero=True)


EXPERIMENT = Experiment(
    number="E22",
    name="hyperparameters",
    title="How many hyper-parameters matter",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C30", lambda t: 1.0 * (matter(t, "none") - matter(t, "bn"))),
        *(Rule(f"C30.{name}", saved(name)) for name in ("lr", *OTHERS)),
    ),
    draw=draw,
    alt="Points lost by the worst value of four numbers, with and without it.",
)
