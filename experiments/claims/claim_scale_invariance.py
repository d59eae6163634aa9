"""E05: batch normalization decouples the gradient from the scale of the weights.

Source: Ioffe and Szegedy, 2015, section 3.3: BN(a W u) = BN(W u), and the gradient with
respect to a W is 1 / a times that with respect to W.

Measured: one dense layer of 64 units on 128 Gaussian examples, weights multiplied by
0.01 to 100; the largest relative difference of the output and of a times the gradient,
with epsilon 1e-12 and, beside it, 1e-5, whose share of the variance grows as weights
shrink. Float32.

Refuted if: with epsilon out of the way the identity holds to fewer than 4 digits.

Command: python -m experiments run scale-invariance --preset quick
Runtime: quick about 12 s of one core.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures
from experiments.claims.lab.engine import ONCE, each
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.rows import Row, row
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "bn epsilon 1e-5")
FACTORS = (0.01, 0.1, 0.5, 2.0, 10.0, 100.0)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Compares the layer at every factor with the layer at factor 1."""
    epsilon = 1e-5 if arm.endswith("1e-5") else 1e-12

    def differences(key, factor):
        keys = jax.random.split(key, 3)
        x = jax.random.normal(keys[0], (128, 64))
        w = jax.random.normal(keys[1], (64, 64)) / 8
        direction = jax.random.normal(keys[2], (128, 64))

        def layer(w):
            if arm == "none":
                return x @ w
            return jaxbn.batch_norm(x @ w, jaxbn.init_state(64), epsilon=epsilon)[0]

        def loss(w):
            return jnp.mean(direction * jnp.tanh(layer(w)))

        output = relative(layer(factor * w), layer(w))
        gradient = relative(factor * jax.grad(loss)(factor * w), jax.grad(loss)(w))
        return output, gradient

    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    found = each(differences, (0, None), (None, 0), options=ONCE)(
        keys, jnp.array(FACTORS)
    )
    return [
        row(
            arm,
            start,
            {"factor": factor},
            {"output": found[0][start, n], "gradient": found[1][start, n]},
        )
        for start in range(setting.starts)
        for n, factor in enumerate(FACTORS)
    ]


def relative(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the largest difference over the largest value."""
    return jnp.abs(x - y).max() / jnp.abs(y).max()


def digits(table: Table, metric: str, **choice: float) -> np.ndarray:
    """Returns to how many digits the identity holds in the worst case."""
    return -np.log10(table.sweep("bn", metric, **choice).max(0))


def draw(figure, table: Table) -> None:
    """Draws the difference of the gradient against the factor."""
    axes = figure.subplots()
    for arm, style in zip(ARMS, ("o-", "o-", "s--"), strict=True):
        values = table.sweep(arm, "gradient").mean(1)
        axes.loglog(FACTORS, values, style, color=figures.color(arm), label=arm)
    axes.set_xlabel("factor a of the weights")
    axes.set_ylabel("relative difference of a · gradient")
    axes.legend()


EXPERIMENT = Experiment(
    number="E05",
    name="scale-invariance",
    title="The gradient is decoupled from the scale of the weights",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C05", lambda t: digits(t, "gradient")),
        Rule("C05.output", lambda t: digits(t, "output")),
    ),
    draw=draw,
    alt="Difference from the identity against the factor of the weights, log-log.",
)
