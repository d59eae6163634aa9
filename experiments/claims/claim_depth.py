"""E04: batch normalization prevents vanishing and exploding gradients.

Source: Yang et al., A mean field theory of batch normalization, 2019 (in deep nets with
batch normalization before ReLU the squared gradient grows by pi / (pi - 1) = 1.467 per
layer at the start, 0.19 in log norm); Bjorck et al., 2018, for the opposite.

Measured: at the start, log gradient norm against the layer in nets of 10 layers, width
256, 512 Gaussian examples, a random linear loss, for ReLU, sigmoid and tanh units and
He weights times 0.5, 1 and 2; for He and ReLU the first layer, which sees no ReLU,
makes the slope smaller than the theory's. In training, MNIST-1D with 12 ReLU layers of
48 units, weights too small (half of He's) or He's, momentum and Adam, best rate.

Refuted if: in any of the nine starts the gradient of the normalized net grows or
shrinks by more per layer than without it (explodes); if 12 layers with small weights
and momentum do not train to 10 points more (vanishes).

Command: python -m experiments run depth --preset quick
Runtime: quick about 220 s of one core.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import ONCE, Plan, each, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none start", "bn start", "none train", "bn train")
LAYERS = 10
UNITS, GAINS = ("relu", "sigmoid", "tanh"), (0.5, 1.0, 2.0)
OPTIMIZERS = ("momentum", "adam")
RATES = {"momentum": (0.003, 0.01, 0.03, 0.1, 0.3), "adam": (0.001, 0.003, 0.01, 0.03)}


def measure(arm: str, setting: Setting) -> list[Row]:
    """Looks at the gradients at the start, or trains a deep net."""
    norm, part = arm.split()
    if part == "start":
        return at_start(arm, setting)
    cells = [
        {"gain": gain, "optimizer": n, "lr": lr}
        for gain in GAINS[:2]
        for n, name in enumerate(OPTIMIZERS)
        for lr in setting.pick(RATES[name][1:2], RATES[name])
    ]
    plan = Plan(
        mlp(norms.NORMS[norm](), widths=(48,) * setting.pick(6, 12)),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=cells,
        steps=setting.pick(40, 500),
        batch=64,
        evals=setting.pick(1, 2),
        seed=setting.seed,
        optimizer=OPTIMIZERS,
    )
    return rows_of(train(plan), arm)


def at_start(arm: str, setting: Setting) -> list[Row]:
    """Returns the gradient norm at every layer of nets that have not been trained."""
    norm, found = norms.NORMS[arm.split()[0]](), []
    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    size = {"width": setting.pick(64, 256), "layers": LAYERS}
    for unit in UNITS:
        look = functools.partial(probes.gradient_norms, activation=unit, **size)
        compiled = each(
            lambda key, gain, look=look: look(norm, key, gain=gain),
            (0, None),
            (None, 0),
            options=ONCE,
        )
        logs = np.log(np.asarray(compiled(keys, jnp.array(GAINS))) + 1e-30)
        # From the last layer, where the gradient comes in, towards the first.
        slopes = -np.polyfit(np.arange(LAYERS), logs.reshape(-1, LAYERS).T, 1)[0]
        slopes = slopes.reshape(logs.shape[:2])
        found += [
            row(
                arm,
                start,
                {"unit": unit, "gain": gain},
                {"growth": slopes[start, n]},
                {"log_norm": logs[start, n]},
            )
            for start in range(setting.starts)
            for n, gain in enumerate(GAINS)
        ]
    return found


def calmer(table: Table, **choice: Any) -> np.ndarray:
    """Returns by how much less the gradient changes per layer, without minus with."""
    plain, normalized = (
        np.abs(table.values(f"{norm} start", "growth", **choice))
        for norm in ("none", "bn")
    )
    return plain - normalized


def every(table: Table) -> np.ndarray:
    """Returns the same in each of the nine starts, (9, starts)."""
    return np.stack([calmer(table, unit=u, gain=g) for u in UNITS for g in GAINS])


def trained(optimizer: str, gain: float):
    """Returns the rule's number: what normalization adds to 12 layers."""
    choice = {"optimizer": OPTIMIZERS.index(optimizer), "gain": gain}
    return lambda t: t.gain("bn train", "none train", **choice)


def draw(figure, table: Table) -> None:
    """Draws the gradients at the start, and the accuracy of deep nets."""
    left, right = figure.subplots(1, 2)
    groups = {}
    for norm in ("none", "bn"):
        logs = table.series(f"{norm} start", "log_norm", unit="relu", gain=1.0)
        left.plot(np.arange(1, LAYERS + 1), logs.T, "o-", color=figures.color(norm))
        for gain in (0.5, 1.0):
            own = {"gain": gain, "optimizer": 0}
            values = table.tuned(f"{norm} train", "test_accuracy", **own)
            groups[f"{norm} {gain} He"] = values
    left.set_xlabel("layer")
    left.set_ylabel("log gradient norm at the start")
    figures.strips(right, groups, label="test accuracy of 12 layers")


EXPERIMENT = Experiment(
    number="E04",
    name="depth",
    title="Vanishing and exploding gradients",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C04a", every),
        Rule("C04a.mean", lambda t: every(t).mean(0)),
        Rule("C04a.he", lambda t: calmer(t, unit="relu", gain=1.0)),
        Rule("C04b", trained("momentum", 0.5)),
        Rule("C04b.he", trained("momentum", 1.0)),
        Rule("C04b.adam", trained("adam", 0.5)),
    ),
    draw=draw,
    alt="Log gradient norm at every layer at the start, and accuracy of 12 layers.",
)
