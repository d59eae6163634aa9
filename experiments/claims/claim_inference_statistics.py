"""E13: inference uses other statistics than training.

Source: Ioffe and Szegedy, 2015, algorithm 2; Wu and Johnson, Rethinking "Batch" in
BatchNorm, 2021 (running averages are a weak estimate); fvcore's update_bn_stats.

Measured: MNIST-1D, three hidden ReLU layers, test accuracy after 20 to 320 steps with
running averages of momentum 0.99 that start at 0 and 1 (Flax, Keras, PyTorch), the same
without their bias to that start (jaxbn's default), momentum 0.9, exact statistics of
the training rows (`jaxbn.deploy.recalibrate`), and the batch's own.

Refuted if: after 80 steps plain running averages are less than two points worse than
the batch's own statistics.

Command: python -m experiments run inference-statistics --preset quick
Runtime: quick about 50 s of one core.
"""

from experiments.claims.lab import norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.population import exact_accuracy
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

NORMS = {
    "0.99 plain": norms.batch(momentum=0.99, debias=False),
    "0.99": norms.batch(momentum=0.99),
    "0.9": norms.batch(momentum=0.9),
}
ESTIMATES = {
    "bn 0.99 plain": ("0.99 plain", "test_accuracy"),
    "bn 0.99 without bias": ("0.99", "test_accuracy"),
    "bn 0.9 without bias": ("0.9", "test_accuracy"),
    "bn exact": ("0.99", "exact_accuracy"),
    "none: the batch's own": ("0.99", "batch_accuracy"),
}
EARLY = 80


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains for several lengths and evaluates in every way."""
    found = []
    for steps in setting.pick((EARLY,), (20, EARLY, 320)):
        plan = Plan(
            mlp(NORMS[arm]),
            splits.mnist1d(starts=setting.starts, seed=setting.seed),
            cells=[{"lr": 0.1, "steps": steps}],
            steps=steps,
            batch=64,
            evals=1,
            seed=setting.seed,
            probe=batch_statistics,
        )
        outcome = train(plan)
        if arm == "0.99":
            exact = mlp(norms.batch(momentum=0.0))
            outcome.series["exact_accuracy"] = exact_accuracy(plan, outcome, exact)
        found += rows_of(outcome, arm)
    return found


def batch_statistics(model, view):
    """Returns the test accuracy with the statistics of the test rows."""
    rows = view.inputs[view.test]
    logits = view.net.apply(model.params, model.state, rows, view.context)[0]
    right = logits.argmax(-1) == view.labels[view.test]
    return {"batch_accuracy": right.mean()}


def value(table: Table, name: str, steps: int = EARLY):
    """Returns the accuracy of an estimate after so many steps."""
    arm, metric = ESTIMATES[name]
    return table.values(arm, metric, steps=steps)


def draw(figure, table: Table) -> None:
    """Draws the accuracy of every estimate against the steps."""
    axes = figure.subplots()
    markers = zip(ESTIMATES, ("o-", "s-", "^-", "D--", "x:"), strict=True)
    for name, marker in markers:
        lengths = [cell["steps"] for cell in table.cells("0.99")]
        means = [value(table, name, steps).mean() for steps in lengths]
        axes.plot(lengths, means, marker, label=name.split(" ", 1)[1], alpha=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("steps of training")
    axes.set_ylabel("accuracy")
    axes.legend()


def better(good: str, poor: str):
    """Returns the rule's number: how much better an estimate is early on."""
    return lambda t: value(t, good) - value(t, poor)


EXPERIMENT = Experiment(
    number="E13",
    name="inference-statistics",
    title="Statistics at inference",
    arms=tuple(NORMS),
    measure=measure,
    rules=(
        Rule("C14b", better("none: the batch's own", "bn 0.99 plain")),
        Rule("C14b.bias", better("bn 0.99 without bias", "bn 0.99 plain")),
        Rule("C14b.exact", better("bn exact", "bn 0.99 without bias")),
    ),
    draw=draw,
    alt="Accuracy against steps of training for five ways to estimate statistics.",
)
