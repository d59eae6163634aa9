"""Worst absolute error of the normalized output, first training step, against float64.

Inputs: float32, 4,096 rows of 64 channels for each mean, standard deviation 1, mean up
to 1e5. Every library with its defaults and epsilon 1e-5. `accuracy.svg` shows them.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.bench import hard, peers
from experiments.bench import main as bench
from experiments.bench.cases import Case
from experiments.common import environment
from experiments.common.tables import markdown

RATIOS = (0.0, 1.0, 2.0, 3.5, 5.0, 10.0, 1e2, 1e3, 1e4, 1e5)
ROWS, CHANNELS = 4096, 64
# The palette of Okabe and Ito, which the colour-blind can tell apart.
COLORS = {
    "jaxbn": "#0072B2",
    "flax": "#D55E00",
    "flax, two passes": "#E69F00",
    "haiku": "#CC79A7",
    "equinox": "#56B4E9",
    "keras": "#009E73",
    "torch": "#000000",
}
# So that lines which coincide show each other.
STYLES = {"haiku": "o--", "equinox": "o--", "keras": "o:"}
DISTRIBUTIONS = ("flax", "dm-haiku", "equinox", "keras", "torch")


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns the errors of each library and a Markdown table."""
    noise = np.random.default_rng(0).normal(size=(ROWS, 1, CHANNELS))
    # Every channel is normalized by itself, so all means are in one array.
    x = (noise + np.array(RATIOS)[:, None]).astype(np.float32).reshape(ROWS, -1)
    want = hard.normalized(x, slice(None))
    case = Case("accuracy", x.shape, "float32", "forward", everyone=True)
    errors = {}
    for name, build in _libraries(case).items():
        y = first(build(case, jnp.asarray(x), None, None)())
        worst = np.abs(y - want).max(0).reshape(len(RATIOS), CHANNELS)
        errors[name] = list(map(hard.known, worst.max(1)))
    header = ["mean / std", *(f"{ratio:g}" for ratio in RATIOS)]
    rows = [[name, *map(hard.figure, values)] for name, values in errors.items()]
    versions = {name: environment.version(name) for name in DISTRIBUTIONS}
    others, table = hard.measure()
    record = {"ratios": RATIOS, "errors": errors, "hard": others, "versions": versions}
    _plot(errors, config.out / "accuracy.svg")
    return record, f"{markdown(header, rows)}\n\n{table}"


def _libraries(case: Case) -> dict:
    """The rows of the table; a peer that is not installed has none."""
    found = peers.builders(case)
    ours = {
        "jaxbn": found.pop("jaxbn"),
        "jaxbn, without kernels": found.pop("xla"),
        "jaxbn, 8 replicas": _replicas,
        "flax": found.pop("flax"),
        "flax, two passes": partial(peers.flax, use_fast_variance=False),
    }
    del found["nnx"]  # The same functions as of linen.
    return ours | dict(sorted(found.items(), key=lambda item: item[0] == "torch"))


def _replicas(case: Case, x, dy, added):
    state = jaxbn.init_state(case.shape[-1])

    def one(part):
        return jaxbn.batch_norm(part, state, axis_name="replicas")[0]

    mapped = jax.jit(jax.vmap(one, axis_name="replicas"))
    return lambda: mapped(x.reshape(8, -1, case.shape[-1])).reshape(case.shape)


def first(result) -> np.ndarray:
    """Returns y of what a library gave, features last."""
    while isinstance(result, tuple | list):
        result = result[0]
    if not hasattr(result, "detach"):
        return np.asarray(result)
    return np.moveaxis(np.asarray(result.detach().float().cpu()), 1, -1)


def _plot(errors: dict[str, list[float | None]], path: Path) -> None:
    """A line for each library: the error over the mean, both logarithmic."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        known = zip(RATIOS, errors.get(name, []), strict=False)
        points = [(m, e) for m, e in known if m and e is not None]
        if points:
            ours = name == "jaxbn"
            options = {"linewidth": 3 if ours else 1.5, "zorder": 3 if ours else 2}
            options["markersize"] = 4
            style = STYLES.get(name, "o-")
            means, worst = zip(*points, strict=True)
            axes.loglog(means, worst, style, color=color, label=name, **options)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate("no digit is right", (1, 1.4), color="grey", fontsize=9)
    axes.set_xlabel("mean / standard deviation of the inputs")
    axes.set_ylabel("worst error of the output")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, alpha=0.6)
    figure.legend(loc="outside right center", frameon=False)
    # The same bytes for the same numbers.
    with rc_context({"svg.hashsalt": "jaxbn"}):
        figure.savefig(path, metadata={"Date": None})
