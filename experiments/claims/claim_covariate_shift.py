"""E06: batch normalization works because it reduces internal covariate shift.

Source: Ioffe and Szegedy, 2015 (the explanation); Santurkar et al., How does batch
normalization help optimization, 2018, section 2 (noise that brings the shift back).

Measured: MNIST-1D, three hidden layers of 64 units, sigmoid with small weights and ReLU
with He weights: plain, normalized, and normalized with noise whose mean and spread
change at every step. Speed is the mean test accuracy over training at each arm's best
rate. Drift is how far the mean and spread of the last activation's inputs move in 20
steps, in the units of the activation. The shift of gradients is the relative change of
the first layer's gradient when the others take their step. For "normal distribution":
the share of units for which D'Agostino's test does not reject normality after training.

Refuted if: normalization does not halve the drift (it stabilizes distributions); if
noise that brings the drift back costs less than half of the advantage (that is why it
works); if fewer than half of the units look normal.

Command: python -m experiments run covariate-shift --preset quick
Runtime: quick about 240 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

NORMS, UNITS = ("none", "bn", "noisy"), ("sigmoid", "relu")
ARMS = tuple(f"{norm} {unit}" for unit in UNITS for norm in NORMS)
RATES = {"sigmoid": (0.3, 1.0, 3.0, 10.0), "relu": (0.1, 0.3, 1.0, 3.0)}


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one arm and watches what its last hidden layer sees."""
    norm, unit = arm.split()
    std = 0.1 if unit == "sigmoid" else None
    plan = Plan(
        mlp(norms.NORMS[norm](), activation=unit, std=std),
        splits.mnist1d(starts=setting.starts, seed=setting.seed, test=1000),
        cells=[{"lr": lr} for lr in setting.pick((1.0,), RATES[unit])],
        steps=setting.pick(60, 600),
        batch=64,
        evals=setting.pick(3, 30),
        seed=setting.seed,
        probe=probes.distributions,
    )
    outcome = train(plan)
    inputs = outcome.series.pop("inputs")
    mean, spread = inputs.mean(-2), inputs.std(-2)
    moved = np.abs(np.diff(mean, axis=2)) + np.abs(np.diff(spread, axis=2))
    drift = moved.mean(-1)
    outcome.series["drift"] = np.concatenate([drift[:, :, :1], drift], 2)
    outcome.series["mean_drift"] = drift.mean(2, keepdims=True)
    outcome.series["normal"] = probes.looks_normal(outcome.series.pop("shown"))
    bound = np.abs(outcome.series.pop("normalized")).max(-1)
    outcome.series["bound"] = bound / np.sqrt(plan.batch - 1)
    return rows_of(outcome, arm, series=("test_accuracy", "drift"))


def fastest(table: Table, arm: str, metric: str) -> np.ndarray:
    """Returns `metric` at the rate that is fastest on the validation rows."""
    return table.tuned(arm, metric, by="validation_area")


def lost(unit: str):
    """Returns the rule's number: the share of the advantage that the noise costs.

    The advantage of each start is that of the mean, since a ratio has no mean.
    """

    def values(table: Table) -> np.ndarray:
        none, bn, noisy = (fastest(table, f"{n} {unit}", "test_area") for n in NORMS)
        return (bn - noisy) / (bn - none).mean()

    return values


def log_ratio(metric: str, first: str, second: str):
    """Returns the rule's number: log2 of a ratio of two arms at their best rates."""
    return lambda t: np.log2(fastest(t, first, metric) / fastest(t, second, metric))


def draw(figure, table: Table) -> None:
    """Draws accuracy and drift against steps."""
    left, right = figure.subplots(1, 2)
    figures.curves(left, table, ARMS[:3], by="validation_area")
    figures.curves(right, table, ARMS[:3], name="drift", by="validation_area")
    right.get_legend().remove()
    right.set_yscale("log")


EXPERIMENT = Experiment(
    number="E06",
    name="covariate-shift",
    title="Internal covariate shift, and normal distributions",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C06a", log_ratio("mean_drift", "none sigmoid", "bn sigmoid")),
        Rule("C06a.relu", log_ratio("mean_drift", "none relu", "bn relu")),
        Rule("C06b", lost("sigmoid")),
        Rule("C06b.relu", lost("relu")),
        Rule("C06b.noisy-bn", log_ratio("mean_drift", "noisy sigmoid", "bn sigmoid")),
        Rule(
            "C06b.noisy-none", log_ratio("mean_drift", "noisy sigmoid", "none sigmoid")
        ),
        Rule(
            "C06b.gradients", log_ratio("gradient_shift", "none sigmoid", "bn sigmoid")
        ),
        Rule("C07", lambda t: fastest(t, "bn sigmoid", "normal")),
        Rule("C07.bound", lambda t: 1.0001 - fastest(t, "bn sigmoid", "bound")),
    ),
    draw=draw,
    alt="Test accuracy and drift of the last layer's inputs against steps.",
    by="validation_area",
)
