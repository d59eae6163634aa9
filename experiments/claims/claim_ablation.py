"""E17: gamma and beta restore what the normalized layer can represent.

Source: Ioffe and Szegedy, 2015, section 3 (with the sigmoid, which is linear around 0,
as the example); Frankle et al., Training BatchNorm and only BatchNorm, 2020.

Measured: MNIST-1D, three hidden layers of 32 units, momentum 0.9, with and without
gamma and beta for sigmoid, tanh and ReLU units, each at its best learning rate. Beside
it, for ReLU: subtracting the mean only, and freezing all weights but gamma, beta and
the last layer.

Refuted if: gamma and beta add the same, within a point, for sigmoid and tanh units.

Command: python -m experiments run ablation --preset quick
Runtime: quick about 95 s of one core.
"""

import jax.numpy as jnp
import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import freeze_hidden, mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

UNITS = ("sigmoid", "tanh", "relu")
ARMS = (
    *(f"{part} {unit}" for unit in UNITS for part in ("bn", "no affine")),
    "mean only relu",
    "affine only relu",
)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one variant."""
    *part, unit = arm.split()
    net = mlp(variant(" ".join(part)), widths=(32,) * 3, activation=unit)
    plan = Plan(
        freeze_hidden(net) if arm.startswith("affine") else net,
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((0.1,), (0.01, 0.03, 0.1, 0.3, 1.0))],
        steps=setting.pick(40, 800),
        batch=100,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def variant(part: str) -> norms.Norm:
    """Returns the normalization of an arm."""
    if part == "no affine":
        return norms.batch(scale=False, bias=False)
    if part == "mean only":
        return norms.composed(lambda x, context: (x.mean(0), jnp.ones(x.shape[-1])))
    return norms.batch()


def affine(table: Table, unit: str) -> np.ndarray:
    """Returns what gamma and beta add to the test accuracy."""
    return table.gain(f"bn {unit}", f"no affine {unit}")


def draw(figure, table: Table) -> None:
    """Draws what gamma and beta add, and the accuracy of every variant."""
    left, right = figure.subplots(1, 2)
    groups = {unit: 100 * affine(table, unit) for unit in UNITS}
    figures.strips(left, groups, label="points with gamma and beta", zero=True)
    groups = {arm: table.tuned(arm, "test_accuracy") for arm in ARMS}
    figures.strips(right, groups, label="test accuracy, best rate")


EXPERIMENT = Experiment(
    number="E17",
    name="ablation",
    title="Gamma and beta",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C15", lambda t: affine(t, "sigmoid") - affine(t, "tanh")),
        *(Rule(f"C15.{unit}", lambda t, u=unit: affine(t, u)) for unit in UNITS),
        Rule("C15.deviation", lambda t: t.gain("bn relu", "mean only relu")),
        Rule("C15.alone", lambda t: t.tuned("affine only relu", "test_accuracy") - 0.4),
    ),
    draw=draw,
    alt="What gamma and beta add for each activation; accuracy of every variant.",
)
