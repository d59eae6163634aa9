"""E20: what batch normalization is, and sentences that are wrong as they stand.

Source: the notes; Ioffe and Szegedy, 2015, algorithms 1 and 2, for what is right.

Measured: what `jaxbn` does; these are identities, which one start decides.
Inference: whether the output for an example changes with its companions in the batch,
in training and in use. Positions: to how many digits the statistics of a convolution
are numpy's over batch and positions. Epsilon: the share of finite gradients where one
feature of 8 is constant, with 1e-5 minus with the smallest float32. Uniform: the
largest of 1000 normalized exponential values over sqrt(3), the largest that a uniform
distribution of variance one has. Per layer: the parameters of a layer of 64 features,
over two. Separately: what an example moves when a companion changes.

Refuted if: for the first three, the number is not what is claimed; for the others, it
is what the sentence would have.

Command: python -m experiments run definitions --preset quick
Runtime: quick about 15 s of one core.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.rows import Row, row
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table
from jaxbn.linen import BatchNorm

SMALLEST = 1.2e-38


def measure(arm: str, setting: Setting) -> list[Row]:
    """Evaluates one definition, or the two lines of a sentence, for every start."""
    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    look = jax.jit(LOOKS[arm])
    return [row(arm, start, {}, {"value": look(k)}) for start, k in enumerate(keys)]


def inference(key: jax.Array) -> jax.Array:
    """Returns 1 if companions matter in training and not in use, else 0."""
    one, other = jax.random.normal(key, (2, 32, 4)).at[:, 0].set(1.0)
    state = jaxbn.batch_norm(one, jaxbn.init_state(4))[1]
    training = [jaxbn.batch_norm(x, state)[0][0] for x in (one, other)]
    use = [jaxbn.batch_norm_inference(x, state)[0] for x in (one, other)]
    moved = [jnp.abs(a - b).max() for a, b in (training, use)]
    return 1.0 * ((moved[0] > 0.01) & (moved[1] < 1e-6))


def positions(key: jax.Array) -> jax.Array:
    """Returns to how many digits statistics are those over batch and positions."""
    x = 3 + 2 * jax.random.normal(key, (4, 6, 6, 5))
    _, state = jaxbn.batch_norm(x, jaxbn.init_state(5))
    flat = x.reshape(-1, 5)
    errors = jnp.stack([state.mean / flat.mean(0), state.var / flat.var(0)]) - 1
    return -jnp.log10(jnp.abs(errors).max() + 1e-9)


def epsilon(key: jax.Array) -> jax.Array:
    """Returns the share of finite gradients with epsilon minus that without."""
    x = jax.random.normal(key, (16, 8)).at[:, 0].set(3.0)

    def finite(epsilon):
        def loss(x):
            y, _ = jaxbn.batch_norm(x, jaxbn.init_state(8), epsilon=epsilon)
            return jnp.sum(jnp.sin(y + jnp.arange(16.0)[:, None]))

        return jnp.isfinite(jax.grad(loss)(x)).mean()

    return finite(1e-5) - finite(SMALLEST)


def uniform(key: jax.Array) -> jax.Array:
    """Returns the largest normalized value over the largest of a uniform one."""
    x = jax.random.exponential(key, (1000, 1))
    return jaxbn.batch_norm(x, jaxbn.init_state(1))[0].max() / 3**0.5


def per_layer(key: jax.Array) -> float:
    """Returns how many parameters a layer has, over the two of the sentence."""
    params = BatchNorm(use_running_average=False).init(key, jnp.ones((8, 64)))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)) / 2


def separately(key: jax.Array) -> jax.Array:
    """Returns how far one example moves when the last of its companions changes."""
    x, state = jax.random.normal(key, (8, 1)), jaxbn.init_state(1)
    one, two = (jaxbn.batch_norm(b, state)[0][0, 0] for b in (x, x.at[-1].add(9.0)))
    return jnp.abs(one - two)


LOOKS = {
    "inference": inference,
    "positions": positions,
    "epsilon": epsilon,
    "uniform": uniform,
    "per layer": per_layer,
    "separately": separately,
}


def value(arm: str):
    """Returns the number of every start."""
    return lambda t: t.values(arm, "value")


def wrong(arm: str, *, right: float):
    """Returns how far the number is below what the sentence would have."""
    return lambda t: right - np.abs(t.values(arm, "value"))


def draw(figure, table: Table) -> None:
    """Draws the number of every start."""
    axes = figure.subplots()
    groups = {arm: table.values(arm, "value") for arm in LOOKS}
    figures.strips(axes, groups, label="number of the rule")
    axes.set_xscale("symlog", linthresh=0.1)


EXPERIMENT = Experiment(
    number="E20",
    name="definitions",
    title="Definitions, and sentences wrong as they stand",
    arms=tuple(LOOKS),
    measure=measure,
    rules=(
        Rule("C14a", value("inference")),
        Rule("C22", value("positions")),
        Rule("C23", value("epsilon")),
        Rule("C26", wrong("uniform", right=1.0)),
        Rule("C27", wrong("per layer", right=1.0)),
        Rule("C28", wrong("separately", right=0.0)),
    ),
    draw=draw,
    alt="A number for each of three definitions and three wrong sentences.",
)
