"""E08: batch normalization regularizes, through the noise of batch statistics.

Source: Ioffe and Szegedy, 2015, section 3.4; Hoffer et al., Train longer, generalize
better, 2017 (ghost batches: noise without changing the batch of the gradient).

Measured: MNIST-1D (training rows are learned by heart, so there is a gap), three hidden
ReLU layers of 64 units, always 256 examples a step, statistics over groups of 8, 32 or
256 of them, best of three learning rates. The gap is training minus test accuracy. The
noise itself: the variance of the normalized value of one example over random batches of
8 to 256; theory says 1 / size, slope -1 in log-log.

Refuted if: the gap is not at least a point smaller with normalization; if the noise
falls more slowly than size to the power -0.8.

Command: python -m experiments run regularisation --preset quick
Runtime: quick about 90 s on two busy cores (standard: twice that).
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import ONCE, Plan, each, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.table import Table

GROUPS = {"bn 256": None, "bn 32": 32, "bn 8": 8}
SIZES = (8, 16, 32, 64, 128, 256)
DRAWS = 200


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains with one size of groups, or measures the noise."""
    if arm == "noise":
        return noise(setting)
    norm = norms.none() if arm == "none" else norms.batch(ghost=GROUPS[arm])
    plan = Plan(
        mlp(norm, inputs=40),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((0.1,), (0.05, 0.1, 0.3))],
        steps=setting.pick(20, 500),
        batch=256,
        evals=setting.pick(2, 5),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def noise(setting: Setting) -> list[Row]:
    """Returns the variance of one normalized example for every size of batch."""
    data = splits.mnist1d(starts=1, seed=setting.seed)
    x = data.inputs[data.train[0]]
    rng = np.random.default_rng(setting.seed)
    w = rng.normal(size=(setting.starts, 40, 16)) / 40**0.5
    rows = np.stack([rng.permutation(len(x))[: SIZES[-1]] for _ in range(DRAWS)])
    rows[:, 0] = 0  # The example that is watched.

    def variance(w, size):
        def draw(batch):
            valid = jnp.arange(SIZES[-1])[:, None] < size
            return jaxbn.batch_norm(batch @ w, jaxbn.init_state(16), where=valid)[0][0]

        return jax.vmap(draw)(jnp.asarray(x[rows])).var(0).mean()

    compiled = each(variance, (0, None), (None, 0), options=ONCE)
    found = np.asarray(compiled(jnp.asarray(w, jnp.float32), jnp.array(SIZES)))
    return [
        row("noise", start, {"size": size}, {"variance": found[start, n]})
        for n, size in enumerate(SIZES)
        for start in range(setting.starts)
    ]


def slope(table: Table) -> np.ndarray:
    """Returns the log-log slope of the noise against the size, with its sign turned."""
    logs = np.log(table.sweep("noise", "variance"))
    return -np.polyfit(np.log(SIZES), logs, 1)[0]


def gap(table: Table, arm: str) -> np.ndarray:
    """Returns training minus test accuracy at the best rate."""
    return table.tuned(arm, "train_accuracy") - table.tuned(arm, "test_accuracy")


def draw(figure, table: Table) -> None:
    """Draws test accuracy for each size of groups, and the noise."""
    left, right = figure.subplots(1, 2)
    groups = {arm: table.tuned(arm, "test_accuracy") for arm in ("none", *GROUPS)}
    figures.strips(left, groups, label="test accuracy, best rate")
    values = table.sweep("noise", "variance")
    right.loglog(SIZES, values, "o", color=figures.color("bn"), ms=4)
    right.loglog(SIZES, values[0].mean() * SIZES[0] / np.array(SIZES), lw=1)
    right.set_xlabel("size of the batch (line: slope -1)")
    right.set_ylabel("variance of a normalized example")


EXPERIMENT = Experiment(
    number="E08",
    name="regularisation",
    title="Regularization and noise",
    arms=("none", *GROUPS, "noise"),
    measure=measure,
    rules=(
        Rule("C08", lambda t: gap(t, "none") - gap(t, "bn 256")),
        Rule("C09", slope),
        Rule("C08.groups", lambda t: gap(t, "bn 256") - gap(t, "bn 8")),
        Rule("C08.accuracy", lambda t: t.gain("bn 256", "none")),
    ),
    draw=draw,
    alt="Test accuracy for each size of groups; noise against size with slope -1.",
)
