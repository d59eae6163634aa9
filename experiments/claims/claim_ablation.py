"""E17: which parts of batch normalization matter.

Source: Ioffe and Szegedy, 2015, section 2 (gradients must flow through the statistics:
otherwise a bias before the layer grows without effect) and section 3 (gamma and beta
restore what the layer can represent, with the sigmoid as its example).

Measured: MNIST-1D, three hidden layers of 32 units, momentum 0.9, each variant at its
best learning rate. Gamma and beta: with and without them for sigmoid, tanh and ReLU
units. The gradient of the statistics: ReLU nets with a bias before the layer, with the
gradient through mean and variance and without: the norm of that bias at the end, the
decades of rates within five points of the best, the loss. Beside it: subtracting the
mean only, and freezing all weights but gamma, beta and the last layer. Epsilon:
gradients of a layer with one constant feature, with epsilon 1e-5 and with the smallest
float32.

Refuted if: gamma and beta add the same for all activations within a point; leaving the
gradient of the statistics out narrows the good rates by a factor of two or more;
without epsilon all gradients stay finite.

Command: python -m experiments run ablation --preset quick
Runtime: quick about 3 minutes on two cores.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import freeze_hidden, mlp
from experiments.claims.lab.readouts import good_range
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

UNITS = ("sigmoid", "tanh", "relu")
AFFINE = tuple(f"{part} {unit}" for unit in UNITS for part in ("bn", "no affine"))
OTHERS = ("mean only", "affine only")
GRADIENT = ("with gradient", "no gradient")
SMALLEST = 1.2e-38
RATES = tuple(float(f"{10**e:.3g}") for e in np.arange(-2.5, 1.01, 0.25))
WITHIN = 0.05


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one variant, or looks at the gradients of a constant feature."""
    if arm == "epsilon":
        return [
            row(arm, start, {"epsilon": epsilon}, {"finite": finite(epsilon, key)})
            for start, key in enumerate(
                jax.random.split(jax.random.key(setting.seed), setting.starts)
            )
            for epsilon in (SMALLEST, 1e-5)
        ]
    unit = arm.split()[-1] if arm in AFFINE else "relu"
    net = mlp(
        variant(arm), widths=(32,) * 3, activation=unit, bias=arm in GRADIENT
    )
    rates = RATES if arm in GRADIENT else (0.01, 0.03, 0.1, 0.3, 1.0)
    plan = Plan(
        freeze_hidden(net) if arm == "affine only" else net,
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[{"lr": lr} for lr in setting.pick(rates[::4], rates)],
        steps=setting.pick(40, 800),
        batch=100,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
        probe=norm_of_biases if arm in GRADIENT else None,
    )
    return rows_of(train(plan), arm)


def variant(arm: str) -> norms.Norm:
    """Returns the normalization of an arm."""
    if arm.startswith("no affine"):
        return norms.batch(scale=False, bias=False)
    if arm == "mean only":
        return norms.composed(lambda x, context: (x.mean(0), jnp.ones(x.shape[-1])))
    if arm == "no gradient":
        return norms.composed(constant_statistics)
    return norms.batch()


def constant_statistics(x, context):
    """Returns the batch's mean and variance as if they did not depend on x."""
    found = jax.lax.stop_gradient(jaxbn.moments(x))
    return found.mean, found.m2 / found.count


def norm_of_biases(model, view):
    """Returns the norm of the biases before the normalizations."""
    square = sum(jnp.square(one).sum() for one in model.params["before"])
    return {"bias_norm": jnp.sqrt(square)}


def finite(epsilon: float, key: jax.Array) -> float:
    """Returns the share of finite gradients where one of 8 features is constant."""
    x = jax.random.normal(key, (16, 8)).at[:, 0].set(3.0)

    def loss(x):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(8), epsilon=epsilon)
        return jnp.sum(jnp.sin(y + jnp.arange(16.0)[:, None]))

    return float(jnp.isfinite(jax.grad(loss)(x)).mean())


def affine(table: Table, unit: str) -> np.ndarray:
    """Returns what gamma and beta add to the test accuracy."""
    return table.gain(f"bn {unit}", f"no affine {unit}")


def width(table: Table, arm: str) -> np.ndarray:
    """Returns how many decades of rates are within five points of the best."""
    decades = np.log10([cell["lr"] for cell in table.cells(arm)])
    low, high = good_range(decades, table.sweep(arm, "test_accuracy"), WITHIN)
    return high - low


def log_loss(table: Table, arm: str) -> np.ndarray:
    """Returns log10 of the loss on training rows at the best rate."""
    return np.log10(table.tuned(arm, "fit_loss"))


def draw(figure, table: Table) -> None:
    """Draws what gamma and beta add, and accuracy against the rate."""
    left, right = figure.subplots(1, 2)
    groups = {unit: 100 * affine(table, unit) for unit in UNITS}
    figures.strips(left, groups, label="points with gamma and beta", zero=True)
    figures.sweep(right, table, GRADIENT, over="lr")


EXPERIMENT = Experiment(
    number="E17",
    name="ablation",
    title="Which parts matter",
    arms=(*AFFINE, *OTHERS, *GRADIENT, "epsilon"),
    measure=measure,
    rules=(
        Rule("C15", lambda t: affine(t, "sigmoid") - affine(t, "tanh")),
        *(Rule(f"C15.{unit}", lambda t, u=unit: affine(t, u)) for unit in UNITS),
        Rule("C16", lambda t: width(t, "no gradient") - width(t, "with gradient")),
        Rule("C16.bias", lambda t: (
            t.tuned("with gradient", "bias_norm") - t.tuned("no gradient", "bias_norm")
        )),
        Rule("C16.loss", lambda t: (
            log_loss(t, "with gradient") - log_loss(t, "no gradient")
        )),
        Rule("C23", lambda t: (
            t.values("epsilon", "finite", epsilon=1e-5)
            - t.values("epsilon", "finite", epsilon=SMALLEST)
        )),
        Rule("C15.deviation", lambda t: t.gain("bn relu", "mean only")),
        Rule("C15.alone", lambda t: t.tuned("affine only", "test_accuracy") - 0.4),
    ),
    draw=draw,
    alt="What gamma and beta add for each activation; accuracy against the rate.",
)
