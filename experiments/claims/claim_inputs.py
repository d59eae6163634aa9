"""E16: normalizing the inputs helps.

Source: the notes; LeCun et al., Efficient backprop, 1998, for the condition number of a
linear model.

Measured: MNIST-1D whose 40 numbers are each multiplied by a random factor from 0.03 to
30 (log-uniform) and shifted by up to three times that, as when columns of a table have
different units. A net with two hidden ReLU layers gets the inputs as they are,
standardized with the training rows, or through batch normalization as its first layer;
gradient descent with momentum and Adam, each arm at its best of six learning rates.

Refuted if: standardized inputs gain less than one point of test accuracy.

Command: python -m experiments run inputs --preset quick
Runtime: quick about 150 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.splits import Splits
from experiments.claims.lab.table import Table

INPUTS = ("none", "standardized", "bn")
ARMS = tuple(f"{name} {how}" for how in ("momentum", "adam") for name in INPUTS)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains with one kind of inputs."""
    name, optimizer = arm.split()
    data = uneven(
        splits.mnist1d(starts=setting.starts, seed=setting.seed), setting.seed
    )
    if name == "standardized":
        data = standardized(data)
    net = mlp(
        norms.none(), widths=(64, 64), first=norms.batch() if name == "bn" else None
    )
    plan = Plan(
        net,
        data,
        cells=[{"lr": lr} for lr in setting.pick(RATES[2:4], RATES)],
        steps=setting.pick(40, 400),
        batch=64,
        evals=setting.pick(2, 8),
        seed=setting.seed,
        optimizer=optimizer,
    )
    return rows_of(train(plan), arm)


def uneven(data: Splits, seed: int) -> Splits:
    """Gives every feature of every start its own unit."""
    rng = np.random.default_rng([seed, 16])
    x = data.inputs.reshape(len(data.train), -1, data.inputs.shape[1])
    size = len(x), 1, x.shape[2]
    factor, shift = 10 ** rng.uniform(-1.5, 1.5, size), rng.uniform(-3, 3, size)
    return _with(data, factor * (x + shift))


def standardized(data: Splits) -> Splits:
    """Gives every feature mean 0 and standard deviation 1 over the training rows."""
    rows = data.inputs[data.train].astype(float)
    x = data.inputs.reshape(len(rows), -1, rows.shape[2])
    return _with(data, (x - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True))


def _with(data: Splits, x: np.ndarray) -> Splits:
    return data._replace(inputs=x.reshape(data.inputs.shape).astype(np.float32))


def draw(figure, table: Table) -> None:
    """Draws accuracy against the learning rate for both optimizers."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, how in zip(panels, ("momentum", "adam"), strict=True):
        figures.sweep(axes, table, [f"{name} {how}" for name in INPUTS], over="lr")
        axes.set_xlabel("learning rate")


EXPERIMENT = Experiment(
    number="E16",
    name="inputs",
    title="Normalizing the inputs",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C19", lambda t: t.gain("standardized momentum", "none momentum")),
        Rule("C19.first", lambda t: t.gain("bn momentum", "none momentum")),
        Rule("C19.beats", lambda t: t.gain("bn momentum", "standardized momentum")),
        Rule("C19.adam", lambda t: t.gain("standardized adam", "none adam")),
    ),
    draw=draw,
    alt="Test accuracy against the learning rate for three kinds of inputs.",
)
