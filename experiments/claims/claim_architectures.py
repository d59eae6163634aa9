"""E18: batch normalization works with every architecture and optimizer.

Source: the notes; MNIST-1D's published baselines (perceptron 68 %, convolutions 94 %,
recurrent 91 % after 6000 steps) as a check of the nets.

Measured: MNIST-1D, a perceptron, a convolutional net and an LSTM, each with gradient
descent, momentum, Adam and RMSProp, with and without normalization, each at its best of
three or four learning rates on the validation rows.

Refuted if: in any of the twelve combinations normalization costs more than two points
of test accuracy. All twelve must be shown not to, each at the full level (an
intersection-union test), so no combination is picked after the fact.

Command: python -m experiments run architectures --preset quick
Runtime: quick about 500 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import conv, mlp
from experiments.claims.lab.plan import Net
from experiments.claims.lab.recurrent import normalized_lstm, plain_lstm
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

KINDS = ("perceptron", "convolutional", "recurrent")
ARMS = tuple(f"{norm} {kind}" for kind in KINDS for norm in ("none", "bn"))
OPTIMIZERS = ("sgd", "momentum", "adam", "rmsprop")
RATES = {
    "sgd": (0.3, 1.0, 3.0, 10.0),
    "momentum": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.01, 0.03, 0.1),
    "rmsprop": (0.01, 0.03, 0.1),
}
RECURRENT = {
    "sgd": (1.0, 3.0, 10.0),
    "momentum": (0.1, 0.3, 1.0, 3.0),
    "adam": (0.03, 0.1, 0.3),
    "rmsprop": (0.03, 0.1, 0.3),
}
STEPS = {"perceptron": 800, "convolutional": 500, "recurrent": 600}


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net with every optimizer, all in one program."""
    norm, kind = arm.split()
    rates = RECURRENT if kind == "recurrent" else RATES
    cells = [
        {"optimizer": n, "lr": lr}
        for n, name in enumerate(OPTIMIZERS)
        for lr in setting.pick(rates[name][1:2], rates[name])
    ]
    plan = Plan(
        net(norm, kind),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=cells,
        steps=setting.pick(20, STEPS[kind]),
        batch=50 if kind == "recurrent" else 100,
        evals=1,
        seed=setting.seed,
        optimizer=OPTIMIZERS,
        cooled=True,
    )
    return rows_of(train(plan), arm)


def net(norm: str, kind: str) -> Net:
    """Returns a net of the kind, with or without batch normalization."""
    if kind == "recurrent":
        return normalized_lstm() if norm == "bn" else plain_lstm()
    if kind == "convolutional":
        return conv(norms.NORMS[norm](), channels=(16, 16, 16))
    return mlp(norms.NORMS[norm](), widths=(64, 64))


def gains(table: Table) -> dict[str, np.ndarray]:
    """Returns what normalization adds in every combination, (starts,) each."""
    return {
        f"{kind}, {name}": table.gain(f"bn {kind}", f"none {kind}", optimizer=n)
        for kind in KINDS
        for n, name in enumerate(OPTIMIZERS)
    }


def draw(figure, table: Table) -> None:
    """Draws what normalization adds in every combination."""
    groups = {name: 100 * values for name, values in gains(table).items()}
    label = "test accuracy with minus without, points"
    figures.strips(figure.subplots(), groups, label=label, zero=True)


EXPERIMENT = Experiment(
    number="E18",
    name="architectures",
    title="Every architecture and optimizer",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C21", lambda t: np.stack(list(gains(t).values()))),
        *(
            Rule(
                f"C21.{kind}",
                lambda t, kind=kind: np.mean(
                    [v for name, v in gains(t).items() if name.startswith(kind)], 0
                ),
            )
            for kind in KINDS
        ),
    ),
    draw=draw,
    alt="What normalization adds to the test accuracy in twelve combinations.",
)
