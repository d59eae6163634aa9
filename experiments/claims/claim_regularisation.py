"""E08: batch normalization regularizes, through the noise of batch statistics.

Source: Ioffe and Szegedy, 2015, section 3.4; Hoffer et al., Train longer, generalize
better, 2017 (ghost batches: noise without changing the batch of the gradient).

Measured: MNIST-1D (training rows are learned by heart, so there is a gap), three hidden
ReLU layers of 64 units, always 256 examples a step, statistics over groups of 32 or
256 of them, or, almost without noise, of them and 768 more. Nets are compared at equal
fit: where the loss on training rows, as in inference, first is 0.2, each at the rate
that is best on the validation rows there. The gap is training minus test accuracy. The
noise itself: the variance of the normalized values of 8 examples, each over 60 random
batches of 8 to 256; theory says 1 / size, slope -1 in log-log.

Refuted if: the gap at equal fit is not at least a point smaller with normalization; if
the noise falls more slowly than size to the power -0.8.

Command: python -m experiments run regularisation --preset quick
Runtime: quick about 180 s of one core.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import ONCE, Plan, each, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.plan import Outcome
from experiments.claims.lab.readouts import at_level
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

BATCH = 256
RATES = {
    "none": (0.03, 0.1, 0.3),
    "bn 1024": (0.1, 0.3, 1.0),
    "bn 256": (0.3, 1.0, 3.0),
    "bn 32": (0.1, 0.3, 1.0, 3.0),
}
SIZES = (8, 16, 32, 64, 128, 256)
WATCHED, DRAWS = 8, 60
FIT = 0.2


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains with one size of groups, or measures the noise."""
    if arm == "noise":
        return noise(setting)
    ghost = 32 if arm == "bn 32" else None
    norm = norms.none() if arm == "none" else norms.batch(ghost=ghost)
    plan = Plan(
        mlp(norm),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((0.3,), RATES[arm])],
        steps=setting.pick(20, 1200),
        batch=4 * BATCH if arm == "bn 1024" else BATCH,
        counted=BATCH,
        evals=setting.pick(2, 40),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(at_equal_fit(train(plan)), arm)


def at_equal_fit(outcome: Outcome) -> Outcome:
    """Adds the accuracies where each run first fits so well; nan if it never does."""
    series = outcome.series
    parts = ("train", "validation", "test")
    found = {
        f"fitted_{p}": at_level(series["fit_loss"], series[f"{p}_accuracy"], FIT)
        for p in parts
    }
    return outcome._replace(series=series | found)


def noise(setting: Setting) -> list[Row]:
    """Returns the variance of normalized examples for every size of batch."""
    data = splits.mnist1d(starts=setting.starts, seed=setting.seed)
    rng = np.random.default_rng(setting.seed)
    w = rng.normal(size=(setting.starts, 40, 16)) / 40**0.5
    shape = WATCHED, DRAWS, SIZES[-1]
    rows = rng.integers(WATCHED, data.train.shape[1], shape)
    rows[:, :, 0] = np.arange(WATCHED)[:, None]

    def variance(w, own, size):
        def draw(batch):
            valid = jnp.arange(SIZES[-1])[:, None] < size
            return jaxbn.batch_norm(batch @ w, jaxbn.init_state(16), where=valid)[0][0]

        values = jax.lax.map(lambda r: jax.vmap(draw)(own[r]), jnp.asarray(rows))
        return values.var(1).mean()

    compiled = each(variance, (0, 0, None), (None, None, 0), options=ONCE)
    own = jnp.asarray(data.inputs[data.train])
    found = np.asarray(compiled(jnp.asarray(w, jnp.float32), own, jnp.array(SIZES)))
    return [
        row("noise", start, {"size": size}, {"variance": found[start, n]})
        for n, size in enumerate(SIZES)
        for start in range(setting.starts)
    ]


def slope(table: Table) -> np.ndarray:
    """Returns the log-log slope of the noise against the size, with its sign turned."""
    logs = np.log(table.sweep("noise", "variance"))
    return -np.polyfit(np.log(SIZES), logs, 1)[0]


def fitted(table: Table, arm: str, part: str = "test") -> np.ndarray:
    """Returns the accuracy at equal fit and the rate that is best there."""
    return table.tuned(arm, f"fitted_{part}", by="fitted_validation")


def gap(table: Table, arm: str) -> np.ndarray:
    """Returns training minus test accuracy at equal fit."""
    return fitted(table, arm, "train") - fitted(table, arm)


def draw(figure, table: Table) -> None:
    """Draws test accuracy for each size of groups, and the noise."""
    left, right = figure.subplots(1, 2)
    groups = {arm: fitted(table, arm) for arm in RATES}
    figures.strips(left, groups, label=f"test accuracy at training loss {FIT}")
    right.loglog(SIZES, table.sweep("noise", "variance"), "o", ms=4)
    right.set_xlabel("size of the batch")
    right.set_ylabel("variance of a normalized example")


EXPERIMENT = Experiment(
    number="E08",
    name="regularisation",
    title="Regularization and noise",
    arms=(*RATES, "noise"),
    measure=measure,
    rules=(
        Rule("C08", lambda t: gap(t, "none") - gap(t, "bn 256")),
        Rule("C09", slope),
        Rule("C08.groups", lambda t: gap(t, "bn 256") - gap(t, "bn 32")),
        Rule("C08.noise", lambda t: gap(t, "none") - gap(t, "bn 1024")),
        Rule("C08.accuracy", lambda t: fitted(t, "bn 256") - fitted(t, "none")),
        Rule("C08.end", lambda t: t.gain("bn 256", "none")),
    ),
    draw=draw,
    alt="Test accuracy at equal fit for each size of groups; noise against size.",
    by="fitted_validation",
)
