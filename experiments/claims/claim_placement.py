"""E12: batch normalization belongs before the activation.

Source: Ioffe and Szegedy, 2015, section 3.2 (before); the notes show both orders;
caffenet-benchmark (Mishkin et al.) finds after better in CaffeNet and before better in
GoogLeNet.

Measured: MNIST-1D, three hidden layers of 64 units, before and after the activation,
for ReLU, tanh and sigmoid, each at its best learning rate on the validation rows. What
decides is whether the order matters differently for tanh and for ReLU. And the share
of ReLU units that are zero on all validation rows, at the best rate and at a rate of
0.5, where a plain net loses many.

Refuted if: what "before" adds differs by less than a point between tanh and ReLU. The
dead units are refuted if normalization saves less than 1 % of them.

Command: python -m experiments run placement --preset quick
Runtime: quick about 140 s of one core.
"""

from typing import Any

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import Placement, mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

UNITS = ("relu", "tanh", "sigmoid")
ARMS = ("none relu", *(f"bn {p} {u}" for u in UNITS for p in ("before", "after")))
HOT = 0.5


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one order of layers."""
    norm, *middle, activation = arm.split()
    placement: Placement = "after" if "after" in middle else "before"
    plan = Plan(
        mlp(norms.NORMS[norm](), activation=activation, placement=placement),
        splits.mnist1d(starts=setting.starts, seed=setting.seed, test=4000),
        cells=[{"lr": lr} for lr in setting.pick((HOT,), (0.02, 0.05, 0.2, HOT, 1.0))],
        steps=setting.pick(40, 800),
        batch=100,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
        probe=probes.dead_units if activation == "relu" else None,
    )
    return rows_of(train(plan), arm)


def before(table: Table, unit: str) -> np.ndarray:
    """Returns what "before" adds to the test accuracy."""
    return table.gain(f"bn before {unit}", f"bn after {unit}")


def saved(table: Table, **choice: Any) -> np.ndarray:
    """Returns the share of units that are dead without minus with normalization."""
    plain, normalized = (
        table.tuned(arm, "dead", **choice) for arm in ("none relu", "bn before relu")
    )
    return plain - normalized


def draw(figure, table: Table) -> None:
    """Draws the test accuracy of every start."""
    groups = {arm: table.tuned(arm, "test_accuracy") for arm in ARMS}
    figures.strips(figure.subplots(), groups, label="test accuracy, best rate")


EXPERIMENT = Experiment(
    number="E12",
    name="placement",
    title="Before or after the activation",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C13", lambda t: before(t, "tanh") - before(t, "relu")),
        *(Rule(f"C13.{unit}", lambda t, u=unit: before(t, u)) for unit in UNITS),
        Rule("C13.alive", lambda t: saved(t)),
        Rule("C13.alive-hot", lambda t: saved(t, lr=HOT)),
    ),
    draw=draw,
    alt="Test accuracy of every start for each order of layers.",
)
