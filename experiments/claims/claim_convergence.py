"""E01: batch normalization makes training converge faster.

Source: Ioffe and Szegedy, Batch Normalization, 2015, section 4.1: three hidden layers
of 100 sigmoid units, small Gaussian weights, 60 examples a step, plain gradient descent
(MNIST there; here the digits, or MNIST with `--data-dir`).

Measured: steps until 90 % of the test rows are right, with and without normalization,
each at the learning rate that did best on the validation rows; the same for ReLU with
He weights, a start that needs no help. The 15th, 50th and 85th percentile of what the
last hidden unit sees are recorded as in the paper's figure 1.

Refuted if: with the published sigmoid net the speed-up is less than 1.2 times.

Command: python -m experiments run convergence --preset quick
Runtime: quick about 110 s on two busy cores (standard: twice that).
"""

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.table import Table, log_speedup

LEVEL = 0.9
ARMS = ("none sigmoid", "bn sigmoid", "none relu", "bn relu")


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains the published net."""
    norm, activation = arm.split()
    if setting.data_dir:
        data = splits.mnist(setting.data_dir, starts=setting.starts, seed=setting.seed)
    else:
        data = splits.digits(starts=setting.starts, seed=setting.seed)
    net = mlp(
        norms.NORMS[norm](),
        inputs=data.inputs.shape[1],
        widths=(100, 100, 100),
        activation=activation,
        std=0.1 if activation == "sigmoid" else None,
    )
    plan = Plan(
        net,
        data,
        cells=[{"lr": lr} for lr in setting.pick((0.3, 3.0), (0.1, 0.3, 1.0, 3.0))],
        steps=setting.pick(100, 1600, 6400),
        batch=60,
        evals=setting.pick(4, 80, 160),
        seed=setting.seed,
        probe=probes.percentiles,
    )
    shown = ("test_accuracy", "validation_accuracy", "p15", "p50", "p85")
    return rows_of(train(plan), arm, series=shown)


def speedup(activation: str):
    """Returns the rule's number: log2 of the speed-up at each arm's own rate."""

    def values(table: Table) -> np.ndarray:
        slow, fast = (f"{norm} {activation}" for norm in ("none", "bn"))
        steps = [
            table.reached(arm, LEVEL, **table.best(arm, "validation_area"))
            for arm in (slow, fast)
        ]
        budget = table.last_step(fast, **table.cells(fast)[0])
        return log_speedup(*steps, budget=budget)

    return values


def draw(figure, table: Table) -> None:
    """Draws accuracy against steps, and the percentiles of the paper's figure 1."""
    left, right = figure.subplots(1, 2)
    for arm in ARMS[:2]:
        cell = table.best(arm, "validation_area")
        steps = table.series(arm, "step", **cell)[0]
        for name in ("p15", "p50", "p85"):
            values = table.series(arm, name, **cell)[0]
            right.plot(steps, values, color=figures.color(arm), lw=1)
    figures.curves(left, table, ARMS[:2], by="validation_area")
    right.set_xlabel("steps")
    right.set_ylabel("percentiles 15, 50, 85 of one input")


EXPERIMENT = Experiment(
    number="E01",
    name="convergence",
    title="Faster convergence",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C01", speedup("sigmoid")),
        Rule("C01.relu", speedup("relu")),
    ),
    draw=draw,
    alt="Test accuracy against steps, and percentiles of one unit's input.",
)
