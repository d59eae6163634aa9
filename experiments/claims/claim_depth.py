"""E04: batch normalization prevents vanishing and exploding gradients.

Source: Yang et al., A mean field theory of batch normalization, 2019 (in deep nets with
batch normalization before ReLU the squared gradient grows by pi / (pi - 1) = 1.467 per
layer at the start, 0.19 in log norm); Bjorck et al., 2018, for the opposite.

Measured: at the start, log gradient norm against the layer in nets of 10 ReLU layers,
width 256, 512 Gaussian examples, a random linear loss, He weights; the first layer,
which sees no ReLU, makes the slope smaller than the theory's. In training, the digits
with 12 ReLU layers of 48 units, weights too small (half of He's) or He's, best of three
learning rates.

Refuted if: with He weights the gradient of the normalized net grows or shrinks by more
per layer than without it (explodes); if 12 layers with small weights do not train to 10
points more (vanishes).

Command: python -m experiments run depth --preset quick
Runtime: quick about 60 s on two busy cores (standard: twice that).
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import ONCE, Plan, each, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.table import Table

ARMS = ("none start", "bn start", "none train", "bn train")
LAYERS = 10


def measure(arm: str, setting: Setting) -> list[Row]:
    """Looks at the gradients at the start, or trains a deep net."""
    norm, part = arm.split()
    if part == "start":
        return at_start(arm, setting)
    depth = setting.pick(6, 12)
    plan = Plan(
        mlp(norms.NORMS[norm](), widths=(48,) * depth),
        splits.digits(starts=setting.starts, seed=setting.seed),
        cells=[
            {"gain": gain, "lr": lr}
            for gain in (0.5, 1.0)
            for lr in setting.pick((0.1,), (0.01, 0.03, 0.1))
        ],
        steps=setting.pick(40, 400),
        batch=64,
        evals=setting.pick(1, 4),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def at_start(arm: str, setting: Setting) -> list[Row]:
    """Returns the gradient norm at every layer of a net that has not been trained."""
    width = setting.pick(64, 256)
    norm = norms.NORMS[arm.split()[0]]()
    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    found = each(
        lambda key, n: probes.gradient_norms(norm, key, width=width, layers=LAYERS),
        (0, None),
        (None, 0),
        options=ONCE,
    )(keys, jnp.arange(1))
    logs = np.log(np.asarray(found)[:, 0])
    # From the last layer, where the gradient comes in, towards the first.
    slopes = -np.polyfit(np.arange(LAYERS), logs.T, 1)[0]
    return [
        row(arm, start, {}, {"growth": slopes[start]}, {"log_norm": logs[start]})
        for start in range(setting.starts)
    ]


def draw(figure, table: Table) -> None:
    """Draws the gradients at the start, and the accuracy of deep nets."""
    left, right = figure.subplots(1, 2)
    groups = {}
    for norm in ("none", "bn"):
        logs = table.series(f"{norm} start", "log_norm")
        left.plot(np.arange(1, LAYERS + 1), logs.T, "o-", color=figures.color(norm))
        for gain in (0.5, 1.0):
            values = table.tuned(f"{norm} train", "test_accuracy", gain=gain)
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
        Rule(
            "C04a",
            lambda t: (
                np.abs(t.values("none start", "growth"))
                - np.abs(t.values("bn start", "growth"))
            ),
        ),
        Rule("C04b", lambda t: t.gain("bn train", "none train", gain=0.5)),
        Rule("C04b.he", lambda t: t.gain("bn train", "none train", gain=1.0)),
    ),
    draw=draw,
    alt="Log gradient norm at every layer at the start, and accuracy of 12 layers.",
)
