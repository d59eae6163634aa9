"""E01: batch normalization makes training converge faster.

Source: Ioffe and Szegedy, Batch Normalization, 2015, section 4.1: three hidden layers
of 100 sigmoid units, small Gaussian weights, 60 examples a step, plain gradient descent
(MNIST there; here MNIST-1D, or MNIST with `--data-dir`).

Measured: steps until 40 % of the test rows are right (90 % of MNIST's), with and
without normalization, each at the rate that gets there first on the validation rows,
evaluated at every step of the first 120 and then every 40; the same for ReLU with He
weights, a start that needs no help. The 15th, 50th and 85th percentile of what the last
hidden unit sees are recorded as in the paper's figure 1.

Refuted if: with the published sigmoid net the speed-up is less than 1.2 times.

Command: python -m experiments run convergence --preset quick
Runtime: quick about 190 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.readouts import first_at
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

LEVELS = {"mnist1d": 0.4, "mnist": 0.9}
ARMS = ("none sigmoid", "bn sigmoid", "none relu", "bn relu")
RATES = {
    "none sigmoid": (1.0, 3.0, 10.0),
    "bn sigmoid": (0.3, 1.0, 3.0, 10.0),
    "none relu": (0.1, 0.3, 1.0),
    "bn relu": (0.3, 1.0, 3.0, 10.0),
}
STEPS = {"none sigmoid": 6000, "bn sigmoid": 1200, "none relu": 1200, "bn relu": 1200}


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains the published net."""
    norm, activation = arm.split()
    own = {"starts": setting.starts, "seed": setting.seed}
    if setting.data_dir:
        data = splits.mnist(setting.data_dir, **own)
    else:
        data = splits.mnist1d(**own, validation=500, test=1000)
    net = mlp(
        norms.NORMS[norm](),
        inputs=data.inputs.shape[1],
        widths=(100, 100, 100),
        activation=activation,
        std=0.1 if activation == "sigmoid" else None,
    )
    steps = setting.pick(80, STEPS[arm])
    plan = Plan(
        net,
        data,
        cells=[{"lr": lr} for lr in setting.pick(RATES[arm][1:2], RATES[arm])],
        steps=steps,
        batch=60,
        evals=steps // 40,
        early=setting.pick(1, 3),
        seed=setting.seed,
        probe=probes.percentiles,
        scored=("validation", "test"),
    )
    outcome = train(plan)
    level = LEVELS["mnist" if setting.data_dir else "mnist1d"]
    for part in ("validation", "test"):
        outcome.series[f"{part}_steps"] = steps_to(outcome, part, level)
    # Of two rates the one that arrives sooner is better.
    outcome.series["validation_speed"] = 1 / outcome.series["validation_steps"]
    return rows_of(outcome, arm, series=("test_accuracy", "p15", "p50", "p85"))


def steps_to(outcome, part: str, level: float) -> np.ndarray:
    """Returns the steps until so many are right, or all, (starts, cells, 1)."""
    values = outcome.series[f"{part}_accuracy"]
    flat = values.reshape(-1, values.shape[-1])
    found = np.minimum(first_at(outcome.steps, flat, level), outcome.steps[-1])
    return found.reshape(*values.shape[:2], 1)


def speedup(activation: str):
    """Returns the rule's number: log2 of the speed-up at each arm's own rate."""

    def values(table: Table) -> np.ndarray:
        slow, fast = (
            table.tuned(f"{norm} {activation}", "test_steps", by="validation_speed")
            for norm in ("none", "bn")
        )
        return np.log2(slow / fast)

    return values


def draw(figure, table: Table) -> None:
    """Draws accuracy against steps, and the percentiles of the paper's figure 1."""
    left, right = figure.subplots(1, 2)
    for arm in ARMS[:2]:
        cell = table.best(arm, "validation_speed")
        steps = table.series(arm, "step", **cell)[0]
        for name in ("p15", "p50", "p85"):
            values = table.series(arm, name, **cell)[0]
            right.plot(steps, values, color=figures.color(arm), lw=1)
    figures.curves(left, table, ARMS[:2], by="validation_speed")
    left.set_xscale("log")
    right.set_xscale("log")
    right.set_xlabel("steps")
    right.set_ylabel("percentiles 15, 50, 85 of one input")


EXPERIMENT = Experiment(
    number="E01",
    name="convergence",
    title="Faster convergence",
    arms=ARMS,
    measure=measure,
    rules=(Rule("C01", speedup("sigmoid")), Rule("C01.relu", speedup("relu"))),
    draw=draw,
    alt="Test accuracy against steps, and percentiles of one unit's input.",
    by="validation_speed",
)
