"""E06: batch normalization works because it reduces internal covariate shift.

Source: Ioffe and Szegedy, 2015 (the explanation); Santurkar et al., How does batch
normalization help optimization, 2018, section 2 (noise that brings the shift back).

Measured: digits, three hidden sigmoid layers of 64 units with small weights: plain,
normalized, and normalized with noise whose mean and spread change at every step. Speed
is the mean test accuracy over training at each arm's best rate. Drift is how far the
mean and spread of the last activation's inputs move in 20 steps, in the units of the
sigmoid, whose own scale is about 1. The shift of gradients is the relative change of
the first layer's gradient when the others take their step. For "normal distribution":
the share of units for which D'Agostino's test does not reject normality after training.

Refuted if: noise that brings the drift back costs less than half of the advantage; if
fewer than half of the units look normal.

Command: python -m experiments run covariate-shift --preset quick
Runtime: quick about 50 s on two busy cores (standard: twice that).
"""

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "noisy")


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one arm and watches what its last hidden layer sees."""
    plan = Plan(
        mlp(norms.NORMS[arm](), activation="sigmoid", std=0.1),
        splits.digits(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((1.0,), (0.3, 1.0, 3.0))],
        steps=setting.pick(60, 800),
        batch=64,
        evals=setting.pick(3, 40),
        seed=setting.seed,
        probe=probes.distributions,
    )
    outcome = train(plan)
    inputs = outcome.series.pop("inputs")
    mean, spread = inputs.mean(-2), inputs.std(-2)
    moved = np.abs(np.diff(mean, axis=2)) + np.abs(np.diff(spread, axis=2))
    drift = moved.mean(-1)
    outcome.series["drift"] = np.concatenate([drift[:, :, :1], drift], 2)
    outcome.series["normal"] = probes.looks_normal(outcome.series.pop("shown"))
    bound = np.abs(outcome.series.pop("normalized")).max(-1)
    outcome.series["bound"] = bound / np.sqrt(plan.batch - 1)
    rows = rows_of(outcome, arm, series=("test_accuracy", "drift"))
    for row in rows:
        row["metrics"]["mean_drift"] = float(f"{np.mean(row['series']['drift']):.6g}")
    return rows


def lost(table: Table) -> np.ndarray:
    """Returns the share of the advantage that the noise costs."""
    none, bn, noisy = (
        table.tuned(arm, "test_area", by="validation_area") for arm in ARMS
    )
    return (bn - noisy) / (bn - none)


def log_ratio(table: Table, metric: str, first: str, second: str) -> np.ndarray:
    """Returns log2 of a ratio of two arms at their best rates."""
    one, two = (
        table.tuned(arm, metric, by="validation_area") for arm in (first, second)
    )
    return np.log2(one / two)


def draw(figure, table: Table) -> None:
    """Draws accuracy and drift against steps."""
    left, right = figure.subplots(1, 2)
    figures.curves(left, table, ARMS, by="validation_area")
    figures.curves(right, table, ARMS, name="drift", by="validation_area")
    right.get_legend().remove()
    right.set_yscale("log")


EXPERIMENT = Experiment(
    number="E06",
    name="covariate-shift",
    title="Internal covariate shift, and normal distributions",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C06", lost),
        Rule("C07", lambda t: t.tuned("bn", "normal", by="validation_area")),
        Rule(
            "C07.bound",
            lambda t: 1.0001 - t.tuned("bn", "bound", by="validation_area"),
        ),
        Rule("C06.noisy-bn", lambda t: log_ratio(t, "mean_drift", "noisy", "bn")),
        Rule("C06.noisy-none", lambda t: log_ratio(t, "mean_drift", "noisy", "none")),
        Rule("C06.gradients", lambda t: log_ratio(t, "gradient_shift", "none", "bn")),
    ),
    draw=draw,
    alt="Test accuracy and drift of the last layer's inputs against steps.",
)
