"""E10: small batches make batch normalization unstable; group normalization is not.

Source: Wu and He, Group normalization, 2018, table 2; Ioffe, Batch renormalization,
2017.

Measured: MNIST-1D, batches of 2, 8 and 32, the learning rate chosen per net and size. A
net of three convolutions of 16 channels, whose last layer has 5 positions and so 10
values per feature at size 2, with batch, group and batch re-normalization; and a dense
net, with 2 values per feature, with batch and layer normalization. The loss is the test
accuracy at size 32 minus at size 2; what decides is how much larger it is than that of
group normalization, both for equal numbers of examples, as in the paper, and, since
small batches then have more updates, for equal numbers of updates. Batch normalization
is also evaluated with exact population statistics (`jaxbn.deploy.recalibrate`).

Refuted if: going from 32 to 2 does not cost the convolutional net with batch
normalization two points more than with group normalization, in either comparison.

Command: python -m experiments run batch-size --preset quick
Runtime: quick about 330 s of one core.
"""

from typing import Any

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import conv, mlp
from experiments.claims.lab.population import exact_accuracy
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

CONV = ("bn conv", "gn conv", "renorm conv")
DENSE = ("bn dense", "ln dense")
SIZES = (2, 8, 32)
VALUES = {"conv": 5, "dense": 1}  # per feature and example, in the last hidden layer
EXAMPLES, UPDATES = 8192, 4096  # the updates of size 2, then of size 32 as well
CHANNELS = (16, 16, 16)
RATES = (0.1, 0.3, 1.0, 3.0)  # for 32 examples


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net with every size of batch."""
    norm, kind = norms.NORMS[arm.split()[0]](), arm.split()[1]
    net = conv(norm, channels=CHANNELS) if kind == "conv" else mlp(norm)
    found = []
    for size, steps in lengths(arm):
        rates = setting.pick((0.3,), RATES)
        plan = Plan(
            net,
            splits.mnist1d(starts=setting.starts, seed=setting.seed),
            cells=[
                {"size": size, "steps": steps, "lr": lr * size / 32} for lr in rates
            ],
            steps=steps // setting.pick(256, 1),
            batch=size,
            evals=1,
            seed=setting.seed,
            cooled=True,
        )
        outcome = train(plan)
        if arm == "bn conv":
            exact = conv(norms.batch(momentum=0.0), channels=CHANNELS)
            outcome.series["exact_accuracy"] = exact_accuracy(plan, outcome, exact)
        found += rows_of(outcome, arm)
    return found


def lengths(arm: str) -> list[tuple[int, int]]:
    """Returns sizes and steps: equal examples, then equal updates."""
    found = [(size, EXAMPLES // size) for size in SIZES]
    return [*found, (SIZES[-1], UPDATES)] if arm in CONV[:2] else found


def damage(table: Table, arm: str, *, updates: bool = False) -> np.ndarray:
    """Returns what the smallest batch costs against the largest."""
    large, small = (
        table.tuned(arm, "test_accuracy", **cell(size, updates=updates))
        for size in (SIZES[-1], SIZES[0])
    )
    return large - small


def cell(size: int, *, updates: bool = False) -> dict[str, Any]:
    """Returns which cells have that size of batch."""
    return {"size": size, "steps": UPDATES if updates else EXAMPLES // size}


def more(first: str, second: str, *, updates: bool = False):
    """Returns the rule's number: how much more small batches cost one arm."""

    def values(table: Table) -> np.ndarray:
        one, other = (damage(table, arm, updates=updates) for arm in (first, second))
        return one - other

    return values


def both(table: Table) -> np.ndarray:
    """Returns the same for equal examples and for equal updates, (2, starts)."""
    return np.stack([more(*CONV[:2], updates=u)(table) for u in (False, True)])


def exact(table: Table) -> np.ndarray:
    """Returns what exact statistics add at the smallest size."""
    best = table.best("bn conv", **cell(SIZES[0]))
    own, running = (
        table.values("bn conv", f"{name}_accuracy", **best)
        for name in ("exact", "test")
    )
    return own - running


def draw(figure, table: Table) -> None:
    """Draws the test error against the number of values that share statistics."""
    axes = figure.subplots()
    for arm in (*CONV, *DENSE):
        kind = arm.split()[1]
        sizes = [n for n in SIZES if table.cells(arm, **cell(n))]
        errors = 100 - 100 * np.stack(
            [table.tuned(arm, "test_accuracy", **cell(n)) for n in sizes]
        )
        x = VALUES[kind] * np.array(sizes)
        style = {"color": figures.color(arm), "ls": "-" if kind == "conv" else "--"}
        axes.plot(x, errors.mean(1), "o", label=arm, **style)
        axes.plot(x, errors, ".", ms=3, alpha=0.4, color=figures.color(arm))
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    axes.set_xlabel("values per feature (batch size times positions)")
    axes.set_ylabel("test error, %")
    axes.legend()


EXPERIMENT = Experiment(
    number="E10",
    name="batch-size",
    title="Small batches",
    arms=(*CONV, *DENSE),
    measure=measure,
    rules=(
        Rule("C11", both),
        Rule("C11.dense", more("bn dense", "ln dense")),
        Rule("C11.renorm", more("bn conv", "renorm conv")),
        Rule("C11.exact", exact),
    ),
    draw=draw,
    alt="Test error against the number of values that share statistics.",
)
