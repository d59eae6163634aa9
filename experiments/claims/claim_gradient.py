"""E24: mean and variance take part in gradient descent.

Source: Ioffe and Szegedy, 2015, section 2: if the gradient ignores that mean and
variance depend on the weights, a bias before the layer grows without any effect.

Measured: MNIST-1D, three hidden layers of 32 ReLU units with a bias before the
normalization, momentum 0.9, with the gradient through mean and variance and without,
for learning rates from 0.006 to 3: the test accuracy and the training loss at the best
rate, the norm of those biases there at the end, and the decades of rates within five
points of the best.

Refuted if: ignoring them costs more than two points of test accuracy.

Command: python -m experiments run gradient --preset quick
Runtime: quick about 50 s of one core.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.readouts import good_range
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

WITH, WITHOUT = ARMS = ("bn", "ignored")
RATES = tuple(float(f"{10**e:.3g}") for e in np.arange(-2.25, 0.51, 0.25))
WITHIN = 0.05


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains with or without the gradient of the statistics."""
    norm = norms.batch() if arm == WITH else norms.composed(constant_statistics)
    plan = Plan(
        mlp(norm, widths=(32,) * 3, bias=True),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick(RATES[::4], RATES)],
        steps=setting.pick(40, 800),
        batch=100,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
        probe=norm_of_biases,
    )
    return rows_of(train(plan), arm)


def constant_statistics(x, context):
    """Returns the batch's mean and variance as if they did not depend on x."""
    found = jax.lax.stop_gradient(jaxbn.moments(x))
    return found.mean, found.m2 / found.count


def norm_of_biases(model, view):
    """Returns the norm of the biases before the normalizations."""
    square = sum(jnp.square(one).sum() for one in model.params["before"])
    return {"bias_norm": jnp.sqrt(square)}


def width(table: Table, arm: str) -> np.ndarray:
    """Returns how many decades of rates are within five points of the best."""
    decades = np.log10([cell["lr"] for cell in table.cells(arm)])
    low, high = good_range(decades, table.sweep(arm, "test_accuracy"), WITHIN)
    return high - low


def log_loss(table: Table, arm: str) -> np.ndarray:
    """Returns log10 of the loss on training rows at the best rate."""
    return np.log10(table.tuned(arm, "fit_loss"))


def draw(figure, table: Table) -> None:
    """Draws accuracy and the norm of the biases against the rate."""
    left, right = figure.subplots(1, 2)
    figures.sweep(left, table, ARMS, over="lr")
    figures.sweep(right, table, ARMS, over="lr", metric="bias_norm")
    right.set_yscale("symlog", linthresh=0.01)


EXPERIMENT = Experiment(
    number="E24",
    name="gradient",
    title="Mean and variance in the gradient",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C16", lambda t: t.gain(WITHOUT, WITH)),
        Rule("C16.width", lambda t: width(t, WITHOUT) - width(t, WITH)),
        Rule(
            "C16.bias",
            lambda t: t.tuned(WITH, "bias_norm") - t.tuned(WITHOUT, "bias_norm"),
        ),
        Rule("C16.loss", lambda t: log_loss(t, WITH) - log_loss(t, WITHOUT)),
    ),
    draw=draw,
    alt="Test accuracy and norm of the biases against the learning rate.",
)
