"""E19: deep networks profit most, because residual branches start small.

Source: De and Smith, Batch normalization biases residual blocks towards the identity
function, 2020: the branch of block l starts about l times smaller (in variance) than
the skip, and a learned factor that starts at zero (SkipInit) does the same.

Measured: residual nets of width 32 with He weights, on MNIST-1D, 4 and 32 blocks:
plain, with batch normalization and with SkipInit, best of four learning rates; and the
variance of each branch over that of its skip before training, 64 blocks. A plain net of
32 blocks does not train at any rate, so it shows nothing but its start; what decides is
the advantage over SkipInit, which shares that start.

Refuted if: the advantage over SkipInit with 32 blocks is not two points larger than
with 4.

Command: python -m experiments run residual --preset quick
Runtime: quick about 230 s of one core.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import ONCE, Plan, each, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import residual
from experiments.claims.lab.plan import Context, Net
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "skip init", "none start", "bn start")
SHALLOW, DEEP = 4, 32


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains shallow and deep nets, or looks at branches before training."""
    if arm.endswith("start"):
        return at_start(arm, setting)
    found = []
    for blocks in (SHALLOW, DEEP):
        plan = Plan(
            net_of(arm, blocks),
            splits.mnist1d(starts=setting.starts, seed=setting.seed),
            cells=[
                {"blocks": blocks, "lr": lr}
                for lr in setting.pick((0.03,), (0.01, 0.03, 0.1, 0.3))
            ],
            steps=setting.pick(20, 500),
            batch=64,
            evals=setting.pick(1, 2),
            seed=setting.seed,
            optimizer="momentum",
        )
        found += rows_of(train(plan), arm)
    return found


def net_of(arm: str, blocks: int) -> Net:
    """Returns the net of an arm."""
    norm = norms.batch() if arm.startswith("bn") else norms.none()
    return residual(norm, blocks, branch=0.0 if arm == "skip init" else 1.0)


def at_start(arm: str, setting: Setting) -> list[Row]:
    """Returns the variance of branches over skips for 64 untrained blocks."""
    net = net_of(arm, 2 * DEEP)

    def ratios(key, _):
        params, state = net.init(key, {})
        x = jax.random.normal(key, (256, 40))
        return net.apply(params, state, x, Context(True, key, {}))[2]

    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    found = each(ratios, (0, None), (None, 0), options=ONCE)(keys, jnp.zeros(1))
    logs = np.log(np.asarray(found)[:, 0, 4:])
    slopes = np.polyfit(np.log(np.arange(5, 2 * DEEP + 1)), logs.T, 1)[0]
    return [
        row(arm, start, {}, {"slope": slopes[start]}, {"ratio": found[start, 0]})
        for start in range(setting.starts)
    ]


def deeper(other: str):
    """Returns the rule's number: the advantage with 32 blocks minus with 4."""

    def values(table: Table) -> np.ndarray:
        deep, shallow = (table.gain("bn", other, blocks=n) for n in (DEEP, SHALLOW))
        return deep - shallow

    return values


def draw(figure, table: Table) -> None:
    """Draws the accuracy of every net, and the branches before training."""
    left, right = figure.subplots(1, 2)
    groups = {
        f"{arm}, {blocks}": values
        for arm in ARMS[:3]
        for blocks, values in table.over(arm, "blocks").items()
    }
    figures.strips(left, groups, label="test accuracy, best rate")
    for arm in ARMS[3:]:
        values = table.series(arm, "ratio").mean(0)
        right.loglog(np.arange(1, len(values) + 1), values, color=figures.color(arm))
    right.set_xlabel("block")
    right.set_ylabel("variance of branch / skip")


EXPERIMENT = Experiment(
    number="E19",
    name="residual",
    title="Deep residual nets",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C20b", deeper("skip init")),
        Rule("C20b.plain", deeper("none")),
        Rule("C20b.skip-init", lambda t: t.gain("bn", "skip init", blocks=DEEP)),
        Rule("C20b.branches", lambda t: -t.values("bn start", "slope")),
    ),
    draw=draw,
    alt="Test accuracy with 4 and 32 blocks; size of branches before training.",
)
