"""E21: with batch normalization weight decay acts as a larger learning rate.

Source: van Laarhoven, L2 regularization versus batch and weight normalization, 2017;
Zhang et al., Three mechanisms of weight decay regularization, 2019. The output does not
depend on the scale of the weights before a normalization (claim C05), so decay cannot
make the function simpler; it keeps the weights small, and a step on smaller weights
turns them further: the effective rate is the rate over their squared norm. The notes do
not ask this; their readers do.

Measured: MNIST-1D, three hidden ReLU layers of 64 units, momentum 0.9, decay of the
weights of 0 to 0.003 and three learning rates, with and without normalization. The
effective rate of the hidden layers at the end, with decay 0.001 and without, at one and
the same rate; and what the best decay adds to the test accuracy at the best rate.

Refuted if: decay does not double the effective rate.

Command: python -m experiments run weight-decay --preset quick
Runtime: quick about 130 s of one core.
"""

import jax.numpy as jnp
import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn")
DECAYS = (0.0, 3e-4, 1e-3, 3e-3)
SHOWN, RATE = 1e-3, 0.1
RATES = (0.03, RATE, 0.3)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net with every decay."""
    plan = Plan(
        mlp(norms.NORMS[arm]()),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[
            {"decay": decay, "lr": lr}
            for decay in setting.pick(DECAYS[::2], DECAYS)
            for lr in setting.pick((RATE,), RATES)
        ],
        steps=setting.pick(40, 1500),
        batch=100,
        evals=setting.pick(2, 3),
        seed=setting.seed,
        optimizer="decayed",
        probe=squared_norm,
    )
    return rows_of(train(plan), arm)


def squared_norm(model, view):
    """Returns the geometric mean of the squared norms of the hidden layers' weights."""
    squares = [jnp.square(w).sum() for w in model.params["dense"][:-1]]
    return {"square": jnp.exp(jnp.mean(jnp.log(jnp.stack(squares))))}


def faster(table: Table) -> np.ndarray:
    """Returns log2 of how many times larger decay makes the effective rate."""
    plain, decayed = (
        table.values("bn", "square", decay=decay, lr=RATE) for decay in (0, SHOWN)
    )
    return np.log2(plain / decayed)


def benefit(table: Table, arm: str) -> np.ndarray:
    """Returns what the best decay adds to the test accuracy, at the best rates."""
    without = table.tuned(arm, "test_accuracy", decay=0)
    return table.tuned(arm, "test_accuracy") - without


def draw(figure, table: Table) -> None:
    """Draws test accuracy against the rate, without and with decay."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, decay in zip(panels, (0, SHOWN), strict=True):
        figures.sweep(axes, table, ARMS, over="lr", decay=decay)
        axes.set_title(f"decay {decay:g}")


EXPERIMENT = Experiment(
    number="E21",
    name="weight-decay",
    title="Weight decay",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C29", faster),
        Rule("C29.accuracy", lambda t: benefit(t, "bn")),
        Rule("C29.plain", lambda t: benefit(t, "none")),
    ),
    draw=draw,
    alt="Test accuracy against the learning rate, without and with weight decay.",
)
