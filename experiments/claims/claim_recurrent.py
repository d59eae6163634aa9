"""E11: batch normalization and recurrent nets.

Source: Cooijmans et al., Recurrent batch normalization, 2016 (statistics per time step,
gamma starts at 0.1); Laurent et al., 2015 (normalizing the recurrence does not help);
Ba et al., Layer normalization, 2016. One note says that it works in recurrent nets, two
say that layer normalization may work better.

Measured: MNIST-1D (20,000 training rows) as a sequence of 10 steps of 4 numbers, an
LSTM of 24 units (`experiments.nets.lstm` where it is normalized), RMSProp, best of
four learning rates that fall to zero: plain; batch normalization with gamma 0.1 and
with gamma 1; layer normalization of what comes from the last output and of the cell
(around the inputs too, as published, it takes the size from four numbers, which is what
tells noise from signal here: 37 % with seed 0). Final accuracy decides; the mean
accuracy over training, which is speed, is beside it. The plain LSTM must reach 88 %, as
published for recurrent nets, or nothing is decided.

Refuted if: batch normalization does not end five points of test accuracy above the
plain LSTM, which is what was published for permuted MNIST (90.2 to 95.4 %).

Command: python -m experiments run recurrent --preset quick
Runtime: quick about 500 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.plan import Net
from experiments.claims.lab.recurrent import normalized_lstm, plain_lstm
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "bn gamma 1", "ln")
ANCHOR = 0.88


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one kind of LSTM."""
    plan = Plan(
        net(arm),
        splits.mnist1d(
            starts=setting.starts, seed=setting.seed, train=20_000, test=4000
        ),
        cells=[{"lr": lr} for lr in setting.pick((0.1,), (0.02, 0.05, 0.1, 0.2))],
        steps=setting.pick(20, 1600),
        batch=64,
        evals=setting.pick(2, 8),
        seed=setting.seed,
        optimizer="rmsprop",
        cooled=True,
    )
    return rows_of(train(plan), arm, series=("test_accuracy",))


def net(arm: str) -> Net:
    """Returns the LSTM of an arm."""
    if not arm.startswith("bn"):
        return plain_lstm(layer_norm=arm == "ln")
    return normalized_lstm(scale=1.0 if arm == "bn gamma 1" else 0.1)


def more(first: str, second: str, metric: str = "test_accuracy"):
    """Returns the rule's number: what one arm has more; nan without the anchor."""

    def values(table: Table) -> np.ndarray:
        reached = table.tuned("none", "test_accuracy").mean() >= ANCHOR
        return table.gain(first, second, metric) * (1 if reached else np.nan)

    return values


def draw(figure, table: Table) -> None:
    """Draws the test accuracy against steps."""
    axes = figure.subplots()
    colors = dict(zip(ARMS, ("none", "bn", "noisy", "ln"), strict=True))
    for arm, name in colors.items():
        cell = table.best(arm)
        values = table.series(arm, "test_accuracy", **cell)
        steps = table.series(arm, "step", **cell)[0]
        axes.plot(steps, values.T, color=figures.COLORS[name], alpha=0.25, lw=0.7)
        axes.plot(steps, values.mean(0), "o-", color=figures.COLORS[name], label=arm)
    axes.axhline(ANCHOR, lw=1, ls=":")
    axes.set_xlabel("steps")
    axes.set_ylabel("test accuracy")
    axes.legend()


EXPERIMENT = Experiment(
    number="E11",
    name="recurrent",
    title="Recurrent nets",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C12", more("bn", "none")),
        Rule("C12.speed", more("bn", "none", "test_area")),
        Rule("C12.gamma", more("bn", "bn gamma 1")),
        Rule("C12.layer", more("ln", "bn")),
    ),
    draw=draw,
    alt="Test accuracy against steps for four kinds of LSTM.",
)
