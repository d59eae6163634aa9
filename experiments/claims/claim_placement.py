"""E12: batch normalization belongs before the activation.

Source: Ioffe and Szegedy, 2015, section 3.2 (before); the notes show both orders;
caffenet-benchmark (Mishkin et al.) finds after better in CaffeNet and before better in
GoogLeNet.

Measured: MNIST-1D, three hidden layers of 64 units, before and after the activation,
for ReLU and tanh, each at its best of three learning rates on the validation rows; and
the share of ReLU units that are zero on all validation rows.

Refuted if: the difference in test accuracy is less than half a point or of the
opposite sign. The dead units are refuted if normalization saves less than 1 %.

Command: python -m experiments run placement --preset quick
Runtime: quick about 20 s on two busy cores (standard: twice that).
"""

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import Placement, mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.table import Table

ARMS = (
    "none relu",
    "bn before relu",
    "bn after relu",
    "bn before tanh",
    "bn after tanh",
)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one order of layers."""
    norm, *middle, activation = arm.split()
    placement: Placement = "after" if "after" in middle else "before"
    net = mlp(
        norms.NORMS[norm](),
        inputs=40,
        activation=activation,
        placement=placement,
    )
    plan = Plan(
        net,
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((0.05,), (0.02, 0.05, 0.2))],
        steps=setting.pick(40, 800),
        batch=100,
        evals=setting.pick(2, 8),
        seed=setting.seed,
        optimizer="momentum",
        probe=probes.dead_units if activation == "relu" else None,
    )
    return rows_of(train(plan), arm)


def draw(figure, table: Table) -> None:
    """Draws the test accuracy of every start."""
    groups = {arm: table.tuned(arm, "test_accuracy") for arm in ARMS}
    figures.strips(figure.subplots(), groups, label="test accuracy, best rate")


EXPERIMENT = Experiment(
    number="E12",
    name="placement",
    title="Before or after the activation",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C13", lambda t: t.gain("bn before relu", "bn after relu")),
        Rule("C13.tanh", lambda t: t.gain("bn before tanh", "bn after tanh")),
        Rule(
            "C13.alive",
            lambda t: t.tuned("none relu", "dead") - t.tuned("bn before relu", "dead"),
        ),
    ),
    draw=draw,
    alt="Test accuracy of every start for each order of layers.",
)
