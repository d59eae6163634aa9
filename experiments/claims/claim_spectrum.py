"""E14: intermediate tensors keep their size and their spectrum, layer by layer.

Source: Ioffe and Szegedy, 2015, section 3.3 (a conjecture: singular values of the
layers' Jacobians close to 1); Daneshmand et al., Batch normalization orthogonalizes
representations in deep random networks, 2021: the orthogonality gap of a random linear
net falls with its width, in log-log by -0.46.

Measured: in training, MNIST-1D with ten hidden ReLU layers of 48 units, He weights
times 0.5, 1 and 2, best rate: the root mean square of what each activation sees, at
four moments, its spread over the layers, and the median singular value of the Jacobian
from the inputs to the last layer. Before training, 8 random examples through random
linear nets: effective rank (exponential of the entropy of the singular values) after
200 layers of width 32, plain and with `jaxbn.batch_norm`; and the paper's setting,
which divides by the root mean square without subtracting the mean: orthogonality gap,
mean over the last half of 100 layers, for widths 32 to 512.

Refuted if: normalization does not bring the sizes one decade closer to 1, on average
over the three starts; if sizes spread over the layers by no less than twice as much
without it, with He weights; if it keeps less than one dimension more.

Command: python -m experiments run spectrum --preset quick
Runtime: quick about 3 minutes on two cores.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxbn
from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import ONCE, Plan, each, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn", "none rank", "bn rank", "bn widths")
GAINS = (0.5, 1.0, 2.0)
EXAMPLES = 8
WIDTHS = (32, 64, 128, 256, 512)


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains a deep net, or sends examples through random nets."""
    if arm in ("none", "bn"):
        return trained(arm, setting)
    keys = jax.random.split(jax.random.key(setting.seed), setting.starts)
    if arm == "bn widths":
        widths, depth, look = setting.pick(WIDTHS[:3], WIDTHS), 100, probes.gap
        normalize = without_mean
    else:
        widths, depth, look = (32,), 200, probes.effective_rank
        normalize = batch_norm if arm == "bn rank" else keep_size
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


def trained(arm: str, setting: Setting) -> list[Row]:
    """Trains ten layers and looks at what they see."""
    plan = Plan(
        mlp(norms.NORMS[arm](), widths=(48,) * 10),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[
            {"gain": gain, "lr": lr}
            for gain in GAINS
            for lr in setting.pick((0.01,), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3))
        ],
        steps=setting.pick(20, 400),
        batch=64,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
        probe=probes.sizes,
    )
    outcome = train(plan)
    # (starts, cells, evals, layers); what is not finite is as far off as can be.
    size = np.nan_to_num(outcome.series.pop("size"), nan=30, posinf=30, neginf=-30)
    singular = np.nan_to_num(outcome.series["singular"], nan=30, posinf=30)
    added = {
        "off": np.abs(size).max((2, 3))[..., None],
        "spread": size.std(3)[:, :, -1:],
        "singular_off": np.abs(singular).max(2)[..., None],
        "positive": outcome.series["positive"].min(3),
    }
    outcome.series.update(added)
    return rows_of(outcome, arm)


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


def closer(table: Table, metric: str, gain: float) -> np.ndarray:
    """Returns what a number of the plain net is above the normalized net's."""
    plain, normalized = (table.tuned(arm, metric, gain=gain) for arm in ARMS[:2])
    return plain - normalized


def draw(figure, table: Table) -> None:
    """Draws how far sizes are from 1, and the effective rank against the layer."""
    left, right = figure.subplots(1, 2)
    groups = {
        f"{arm} {gain} He": table.tuned(arm, "off", gain=gain)
        for arm in ARMS[:2]
        for gain in GAINS
    }
    figures.strips(left, groups, label="sizes: decades from 1, worst layer")
    for arm in ARMS[2:4]:
        values = table.series(arm, "value")
        layers = np.arange(values.shape[1]) * 10
        right.plot(layers, values.T, color=figures.color(arm), alpha=0.3, lw=0.8)
        right.plot(layers, values.mean(0), color=figures.color(arm), lw=2, label=arm)
    right.set_xlabel("layer")
    right.set_ylabel("effective rank of 8 examples")
    right.legend()


EXPERIMENT = Experiment(
    number="E14",
    name="spectrum",
    title="The size and the spectrum of intermediate tensors",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C17", lambda t: np.mean([closer(t, "off", g) for g in GAINS], 0)),
        Rule("C17.he", lambda t: closer(t, "off", 1.0)),
        Rule("C17.jacobian", lambda t: closer(t, "singular_off", 1.0)),
        Rule(
            "C17.rank",
            lambda t: t.values("bn rank", "last") - t.values("none rank", "last"),
        ),
        Rule("C17.widths", slope),
        Rule("C25", lambda t: np.log2(
            t.tuned("none", "spread", gain=1.0) / t.tuned("bn", "spread", gain=1.0)
        )),
    ),
    draw=draw,
    alt="Distance of sizes from 1; effective rank against the layer.",
)
