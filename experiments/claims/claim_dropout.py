"""E09: batch normalization reduces the need for dropout.

Source: Ioffe and Szegedy, 2015, section 3.4 ("removed or reduced in strength");
caffenet-benchmark; Li et al., 2019, on dropout before batch normalization.

Measured: MNIST-1D (4000 rows), two hidden layers of 128 ReLU units with and without
normalization, dropout of 0 to 0.25 after each, long enough to learn all rows; rate of
dropout and learning rate are chosen on the validation rows. The benefit of dropout is
the test accuracy at the best rate of dropout minus that without dropout.

Refuted if: the benefit without normalization is less than one point larger than with.

Command: python -m experiments run dropout --preset quick
Runtime: quick about 430 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn")
DROPOUT = (0.0, 0.1, 0.25)
RATES = {"none": (0.04, 0.09, 0.2), "bn": (0.07, 0.15, 0.3)}


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net with every rate of dropout."""
    cells = [
        {"dropout": rate, "lr": lr}
        for rate in setting.pick(DROPOUT[::2], DROPOUT)
        for lr in setting.pick((0.05,), RATES[arm])
    ]
    plan = Plan(
        mlp(norms.NORMS[arm](), widths=(128, 128)),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=cells,
        steps=setting.pick(40, 3000),
        batch=100,
        evals=2,
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def benefit(table: Table, arm: str) -> np.ndarray:
    """Returns what the best dropout adds to the test accuracy."""
    without = table.tuned(arm, "test_accuracy", dropout=0)
    return table.tuned(arm, "test_accuracy") - without


def draw(figure, table: Table) -> None:
    """Draws test accuracy against dropout, each at its best learning rate."""
    axes = figure.subplots()
    for arm in ARMS:
        found = table.over(arm, "dropout")
        rates, values = list(found), np.stack(list(found.values()))
        own = {"color": figures.color(arm), "label": figures.NAMES[arm]}
        axes.plot(rates, values.mean(1), "o-", **own)
        axes.plot(rates, values, ".", alpha=0.4, color=figures.color(arm))
    axes.set_xlabel("dropout")
    axes.set_ylabel("test accuracy")
    axes.legend()


EXPERIMENT = Experiment(
    number="E09",
    name="dropout",
    title="Less need for dropout",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C10", lambda t: benefit(t, "none") - benefit(t, "bn")),
        Rule("C10.helps", lambda t: benefit(t, "bn")),
        Rule(
            "C10.replaces",
            lambda t: (
                t.tuned("bn", "test_accuracy", dropout=0)
                - t.tuned("none", "test_accuracy")
            ),
        ),
    ),
    draw=draw,
    alt="Test accuracy against the rate of dropout, with and without normalization.",
)
