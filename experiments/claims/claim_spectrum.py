"""E14: batch normalization keeps the spectrum of intermediate tensors stable.

Source: Ioffe and Szegedy, 2015, section 3.3 (a conjecture); Daneshmand et al., Batch
normalization orthogonalizes representations in deep random networks, 2021: the
orthogonality gap of a random linear net falls with its width, in log-log by -0.46.

Measured: 8 random examples through random linear nets, without training. Effective
rank (exponential of the entropy of the singular values) after 200 layers of width 32,
plain and with `jaxbn.batch_norm`. Then the paper's setting, which divides by the root
mean square without subtracting the mean: orthogonality gap, mean over the last half of
100 layers, for widths 32 to 512. Nets in training are those of `layers`.

Refuted if: batch normalization keeps less than one dimension more.

Command: python -m experiments run spectrum --preset quick
Runtime: quick about 30 s of one core.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxbn
from experiments.claims.lab import figures, probes
from experiments.claims.lab.engine import ONCE, each
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.rows import Row, row
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "bn widths")
EXAMPLES = 8
WIDTHS = (32, 64, 128, 256, 512)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Sends examples through random nets."""
    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    if arm == "bn widths":
        widths, depth, look = setting.pick(WIDTHS[:3], WIDTHS), 100, probes.gap
        normalize = without_mean
    else:
        widths, depth, look = (32,), 200, probes.effective_rank
        normalize = batch_norm if arm == "bn" else keep_size
    found = []
    for width in widths:
        compiled = each(
            lambda key, _, width=width: through(key, width, depth, normalize, look),
            *((0, None), (None, 0)),
            options=ONCE,
        )
        traces = np.asarray(compiled(keys, jnp.zeros(1)))[:, 0]
        for start, trace in enumerate(traces):
            seen = {"last": trace[-1], "mean": trace[depth // 2 :].mean()}
            curve = {"value": trace[:: depth // 20]}
            found.append(row(arm, start, {"width": width}, seen, curve))
    return found


def through(key, width: int, depth: int, normalize, look) -> jax.Array:
    """Returns `look` after every layer of a random linear net, (depth,)."""
    first, rest = jax.random.split(key)

    def layer(h, key):
        w = jax.random.normal(key, (width, width)) / width**0.5
        h = normalize(h @ w)
        return h, look(h)

    h = jax.random.normal(first, (EXAMPLES, width))
    return lax.scan(layer, h, jax.random.split(rest, depth))[1]


def batch_norm(h: jax.Array) -> jax.Array:
    """Normalizes every feature over the examples."""
    return jaxbn.batch_norm(h, jaxbn.init_state(h.shape[1]))[0]


def without_mean(h: jax.Array) -> jax.Array:
    """Divides every feature by its root mean square, as in the paper's theory."""
    square = jnp.mean(jnp.square(h), 0)
    return jaxbn.normalize(h, jnp.zeros_like(square), square, epsilon=1e-12)


def keep_size(h: jax.Array) -> jax.Array:
    """Keeps the plain net's numbers in range; rank and angles do not see it."""
    return h / jnp.sqrt(jnp.mean(jnp.square(h)))


def slope(table: Table) -> np.ndarray:
    """Returns the log-log slope of the gap against the width, with its sign turned."""
    widths = [cell["width"] for cell in table.cells("bn widths")]
    logs = np.log(table.sweep("bn widths", "mean"))
    return -np.polyfit(np.log(widths), logs, 1)[0]


def draw(figure, table: Table) -> None:
    """Draws the effective rank against the layer, and the gap against the width."""
    left, right = figure.subplots(1, 2)
    for arm in ARMS[:2]:
        values = table.series(arm, "value")
        layers = np.arange(values.shape[1]) * 10
        left.plot(layers, values.T, color=figures.color(arm), alpha=0.3, lw=0.8)
        left.plot(layers, values.mean(0), color=figures.color(arm), lw=2, label=arm)
    left.set_xlabel("layer")
    left.set_ylabel("effective rank of 8 examples")
    left.legend()
    widths = [cell["width"] for cell in table.cells("bn widths")]
    values = table.sweep("bn widths", "mean")
    right.loglog(widths, values, "o", ms=4, color=figures.color("bn"))
    right.set_xlabel("width")
    right.set_ylabel("orthogonality gap")


EXPERIMENT = Experiment(
    number="E14",
    name="spectrum",
    title="The spectrum of intermediate tensors",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C17a", lambda t: t.values("bn", "last") - t.values("none", "last")),
        Rule("C17a.widths", slope),
    ),
    draw=draw,
    alt="Effective rank against the layer; orthogonality gap against the width.",
)
