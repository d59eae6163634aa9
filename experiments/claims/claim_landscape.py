"""E07: instead, batch normalization smooths the loss.

Source: Santurkar et al., 2018, section 3 and figure 4: along the gradient, the loss
varies less and the gradient changes less. The notes do not claim this; one says that
batch normalization is not fully understood.

Measured: MNIST-1D, five hidden ReLU layers of 48 units, every arm at learning rate 0.1;
along the gradient at 8 distances up to 0.4, the largest change of the gradient over the
distance (effective smoothness), at 8 moments of training. A net with batch
normalization does not depend on the scale of its weights, so the same number times
the squared norm of the weights is given too.

Refuted if: the smoothness is not at least 1.5 times better (raw); beside it, the same
for the number that does not depend on the scale.

Command: python -m experiments run landscape --preset quick
Runtime: quick about 60 s of one core.
"""

import functools

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "ln")
DISTANCES = np.linspace(0.05, 0.4, 8)
RATE = 0.1


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net and looks along its gradients."""
    plan = Plan(
        mlp(norms.NORMS[arm](), widths=(48,) * 5),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": RATE}],
        steps=setting.pick(40, 400),
        batch=64,
        evals=setting.pick(2, 8),
        seed=setting.seed,
        probe=functools.partial(probes.smoothness, distances=DISTANCES),
    )
    shown = ("smoothness", "scale_free", "loss_range")
    return rows_of(train(plan), arm, series=shown)


def better(table: Table, name: str, other: str = "none") -> np.ndarray:
    """Returns log10 of how many times smaller a number is, mean over training."""
    logs = [
        np.log10(np.maximum(table.series(arm, name), 1e-6)).mean(1)
        for arm in (other, "bn")
    ]
    return logs[0] - logs[1]


def draw(figure, table: Table) -> None:
    """Draws both numbers against steps."""
    panels = figure.subplots(1, 3)
    names = ("smoothness", "scale_free", "loss_range")
    for axes, name in zip(panels, names, strict=True):
        figures.curves(axes, table, ARMS, name=name)
        axes.set_yscale("log")
        axes.get_legend().remove()


EXPERIMENT = Experiment(
    number="E07",
    name="landscape",
    title="A smoother loss instead",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C24", lambda t: better(t, "smoothness")),
        Rule("C24.scale-free", lambda t: better(t, "scale_free")),
        Rule("C24.range", lambda t: better(t, "loss_range")),
        Rule("C24.layer", lambda t: better(t, "smoothness", "ln")),
    ),
    draw=draw,
    alt="Effective smoothness, the same free of scale, and the range of the loss.",
)
