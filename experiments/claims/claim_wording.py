"""E20: sentences that are wrong as they stand, shown wrong by two lines of code each.

Source: the notes; Ioffe and Szegedy, 2015, algorithm 1, for what is right.

Measured: what `jaxbn` does. "Uniformly distributed": the largest normalized value of
1000 exponential ones over sqrt(3), the largest that a uniform distribution of variance
one has. "Two parameters per layer": the number of parameters of a layer of 64 features
over two. "For each of the inputs separately": how far the normalized value of an
example moves when another example changes.

Refuted if: the sentence is right: these are identities, which one start decides.

Command: python -m experiments run wording --preset quick
Runtime: quick a few seconds on two cores.
"""

import jax
import jax.numpy as jnp

import jaxbn
from experiments.claims.lab import figures
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.rows import Row, row
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table
from jaxbn.linen import BatchNorm

ARMS = ("uniform", "per layer", "separately")


def measure(arm: str, setting: Setting) -> list[Row]:
    """Evaluates the two lines for every start."""
    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    look = {"uniform": uniform, "per layer": per_layer, "separately": separately}[arm]
    return [row(arm, start, {}, {"value": look(k)}) for start, k in enumerate(keys)]


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
    other = x.at[-1].add(9.0)
    one, two = (jaxbn.batch_norm(batch, state)[0][0, 0] for batch in (x, other))
    return jnp.abs(one - two)


def draw(figure, table: Table) -> None:
    """Draws the number of every start."""
    groups = {arm: table.values(arm, "value") for arm in ARMS}
    axes = figure.subplots()
    figures.strips(axes, groups, label="what the sentence would have at 1, 1 and 0")
    axes.set_xscale("symlog", linthresh=0.1)


EXPERIMENT = Experiment(
    number="E20",
    name="wording",
    title="Wrong as they stand",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C26", lambda t: 1 - t.values("uniform", "value")),
        Rule("C27", lambda t: 1 - t.values("per layer", "value")),
        Rule("C28", lambda t: -t.values("separately", "value")),
    ),
    draw=draw,
    alt="A number for each of three sentences, far from what it would have to be.",
)
