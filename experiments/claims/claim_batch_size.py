"""E10: small batches make batch normalization unstable; group normalization is not.

Source: Wu and He, Group normalization, 2018, table 2; Ioffe, Batch renormalization,
2017. Convolutions share statistics over the batch and all positions (claim C22).

Measured: digits, a small convolutional net, batches of 2, 8 and 32, always the same
number of examples, the learning rate chosen per net and size out of three; the loss is
the test accuracy at size 32 minus at size 2. Batch normalization is also evaluated with
exact population statistics (`jaxbn.deploy.recalibrate`), which separates what small
batches do to training from what they do to the running averages. The definition is
compared with numpy in float64.

The test is a weak one: convolutions of 8 x 8 images still give 8 values or more per
feature at size 2. Dense layers give 2, so a dense net with batch and layer
normalization is shown beside it; it does not decide.

Refuted if: going from 32 to 2 costs batch normalization less than two points more
than group normalization; if convolution statistics differ from those over batch and
positions in the fourth digit.

Command: python -m experiments run batch-size --preset quick
Runtime: quick about 150 s on two busy cores (standard: twice that).
"""

import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import conv, mlp
from experiments.claims.lab.population import exact_accuracy
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.table import Table

NORMS = ("none", "bn", "gn", "renorm")
DENSE = ("bn dense", "ln dense")
SIZES = (2, 8, 32)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net with every size of batch."""
    if arm == "definition":
        return [row(arm, n, {}, definition(n)) for n in range(setting.starts)]
    found = []
    for size in setting.pick(SIZES[::2], SIZES):
        norm, *kind = arm.split()
        plan = Plan(
            (mlp if kind else conv)(norms.NORMS[norm]()),
            splits.digits(starts=setting.starts, seed=setting.seed),
            cells=[
                {"size": size, "lr": lr * size / 32}
                for lr in setting.pick((0.3,), (0.1, 0.3, 1.0))
            ],
            steps=setting.pick(64, 4096) // size,
            batch=size,
            evals=1,
            seed=setting.seed,
        )
        outcome = train(plan)
        if arm == "bn":
            exact = conv(norms.batch(momentum=0.0))
            outcome.series["exact_accuracy"] = exact_accuracy(plan, outcome, exact)
        found += rows_of(outcome, arm)
    return found


def definition(start: int) -> dict[str, float]:
    """Returns to how many digits the statistics are those over batch and positions."""
    x = np.random.default_rng(start).normal(3, 2, (4, 6, 6, 5)).astype(np.float32)
    _, state = jaxbn.batch_norm(jnp.asarray(x), jaxbn.init_state(5))
    wide = x.astype(float)
    expected = np.stack([wide.mean((0, 1, 2)), wide.var((0, 1, 2))])
    error = np.abs(np.stack([state.mean, state.var]) / expected - 1).max()
    return {"digits": -np.log10(max(error, 1e-9))}


def damage(table: Table, arm: str, metric: str = "test_accuracy") -> np.ndarray:
    """Returns what the smallest batch costs against the largest."""
    large, small = (table.tuned(arm, metric, size=n) for n in (SIZES[-1], SIZES[0]))
    return large - small


def draw(figure, table: Table) -> None:
    """Draws the test error against the size, as in the paper's figure 1."""
    axes = figure.subplots()
    for arm in NORMS:
        found = table.over(arm, "size")
        means = [100 - 100 * values.mean() for values in found.values()]
        axes.plot(list(found), means, "o-", color=figures.color(arm), label=arm)
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    axes.set_xlabel("batch size")
    axes.set_ylabel("test error, %")
    axes.legend()


EXPERIMENT = Experiment(
    number="E10",
    name="batch-size",
    title="Small batches",
    arms=(*NORMS, *DENSE, "definition"),
    measure=measure,
    rules=(
        Rule("C11", lambda t: damage(t, "bn") - damage(t, "gn")),
        Rule("C22", lambda t: t.values("definition", "digits")),
        Rule("C11.dense", lambda t: damage(t, "bn dense") - damage(t, "ln dense")),
        Rule("C11.renorm", lambda t: damage(t, "bn") - damage(t, "renorm")),
        Rule(
            "C11.exact",
            lambda t: (
                t.tuned("bn", "exact_accuracy", size=2)
                - t.tuned("bn", "test_accuracy", size=2)
            ),
        ),
    ),
    draw=draw,
    alt="Test error against the batch size, from large to small.",
)
