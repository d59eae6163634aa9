"""E17: which parts of batch normalization matter.

Source: Ioffe and Szegedy, 2015, section 2 (gradients must flow through the statistics)
and section 3 (gamma and beta restore what the layer can represent).

Measured: digits, three hidden ReLU layers of 64 units, momentum 0.9, each variant at
its best of four learning rates: complete; without gamma and beta; with the mean only
(no division); without a gradient through mean and variance; and with all weights but
gamma, beta and the last layer frozen. Epsilon: gradients of a layer with one constant
feature, with epsilon 1e-5 and with the smallest float32.

Refuted if: gamma and beta add less than half a point; leaving the gradient of the
statistics out costs more than two points; without epsilon all gradients stay finite.

Command: python -m experiments run ablation --preset quick
Runtime: quick about 60 s on two busy cores (standard: twice that).
"""

import jax
import jax.numpy as jnp

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Rule, Setting
from experiments.claims.lab.nets import freeze_hidden, mlp
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.table import Table

TRAINED = ("none", "bn", "no affine", "mean only", "no gradient", "affine only")
SMALLEST = 1.2e-38


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one variant, or looks at the gradients of a constant feature."""
    if arm == "epsilon":
        return [
            row(arm, start, {"epsilon": epsilon}, {"finite": finite(epsilon, start)})
            for start in range(setting.starts)
            for epsilon in (SMALLEST, 1e-5)
        ]
    net = mlp(variant(arm))
    plan = Plan(
        freeze_hidden(net) if arm == "affine only" else net,
        splits.digits(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick((0.1,), (0.01, 0.03, 0.1, 0.3))],
        steps=setting.pick(40, 400),
        batch=64,
        evals=setting.pick(2, 8),
        seed=setting.seed,
        optimizer="momentum",
    )
    return rows_of(train(plan), arm)


def variant(arm: str) -> norms.Norm:
    """Returns the normalization of an arm."""
    if arm == "no affine":
        return norms.batch(scale=False, bias=False)
    if arm == "mean only":
        return norms.composed(lambda x, context: (x.mean(0), jnp.ones(x.shape[-1])))
    if arm == "no gradient":
        return norms.composed(constant_statistics)
    return norms.none() if arm == "none" else norms.batch()


def constant_statistics(x, context):
    """Returns the batch's mean and variance as if they did not depend on x."""
    found = jax.lax.stop_gradient(jaxbn.moments(x))
    return found.mean, found.m2 / found.count


def finite(epsilon: float, start: int) -> float:
    """Returns the share of finite gradients where one of 8 features is constant."""
    x = jax.random.normal(jax.random.key(start), (16, 8)).at[:, 0].set(3.0)

    def loss(x):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(8), epsilon=epsilon)
        return jnp.sum(jnp.sin(y + jnp.arange(16.0)[:, None]))

    return float(jnp.isfinite(jax.grad(loss)(x)).mean())


def draw(figure, table: Table) -> None:
    """Draws the test accuracy of every variant."""
    groups = {arm: table.tuned(arm, "test_accuracy") for arm in TRAINED}
    figures.strips(figure.subplots(), groups, label="test accuracy, best rate")


EXPERIMENT = Experiment(
    number="E17",
    name="ablation",
    title="Which parts matter",
    arms=(*TRAINED, "epsilon"),
    measure=measure,
    rules=(
        Rule("C15", lambda t: t.gain("bn", "no affine")),
        Rule("C16", lambda t: 0.02 - t.gain("bn", "no gradient")),
        Rule(
            "C23",
            lambda t: (
                t.values("epsilon", "finite", epsilon=1e-5)
                - t.values("epsilon", "finite", epsilon=SMALLEST)
            ),
        ),
        Rule("C15.deviation", lambda t: t.gain("bn", "mean only")),
        Rule("C15.alone", lambda t: t.tuned("affine only", "test_accuracy") - 0.8),
    ),
    draw=draw,
    alt="Test accuracy of every start for each variant.",
)
