"""E11: batch normalization and recurrent nets.

Source: Cooijmans et al., Recurrent batch normalization, 2016 (statistics per time step,
gamma starts at 0.1); Laurent et al., 2015 (normalizing the recurrence does not help).
One note says that it works in recurrent nets, two say that layer normalization may work
better.

Measured: MNIST-1D as a sequence of 10 steps of 4 numbers, an LSTM of 24 units
(`experiments.nets.lstm` where it is normalized), RMSProp, better of two learning rates:
plain; batch normalization with gamma 0.1, with gamma 1, and with the statistics of all
steps shared; layer normalization.

Refuted if: batch normalization adds less than two points of test accuracy in the same
number of steps.

Command: python -m experiments run recurrent --preset quick
Runtime: quick about 50 s on two busy cores (standard: twice that).
"""

from experiments.claims.lab import figures, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.plan import Net
from experiments.claims.lab.recurrent import normalized_lstm, plain_lstm
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "bn gamma 1", "bn shared", "ln")


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one kind of LSTM."""
    plan = Plan(
        net(arm),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((0.01,), (0.003, 0.01))],
        steps=setting.pick(20, 500),
        batch=64,
        evals=setting.pick(2, 5),
        seed=setting.seed,
        optimizer="rmsprop",
    )
    return rows_of(train(plan), arm, series=("test_accuracy",))


def net(arm: str) -> Net:
    """Returns the LSTM of an arm."""
    if not arm.startswith("bn"):
        return plain_lstm(layer_norm=arm == "ln")
    scale = 1.0 if arm == "bn gamma 1" else 0.1
    return normalized_lstm(scale=scale, shared=arm == "bn shared")


def draw(figure, table: Table) -> None:
    """Draws the test accuracy against steps."""
    axes = figure.subplots()
    colors = dict(zip(ARMS, ("none", "bn", "noisy", "gn", "ln"), strict=True))
    for arm, name in colors.items():
        cell = table.best(arm)
        values = table.series(arm, "test_accuracy", **cell).mean(0)
        steps = table.series(arm, "step", **cell)[0]
        axes.plot(steps, values, "o-", color=figures.COLORS[name], label=arm)
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
        Rule("C12", lambda t: t.gain("bn", "none")),
        Rule("C12.gamma", lambda t: t.gain("bn", "bn gamma 1")),
        Rule("C12.shared", lambda t: t.gain("bn", "bn shared")),
        Rule("C12.layer", lambda t: t.gain("ln", "bn")),
    ),
    draw=draw,
    alt="Test accuracy against steps for five kinds of LSTM.",
)
