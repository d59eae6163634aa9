"""Worst absolute error of the normalized output, first training step, against float64.

Inputs: float32, 4,096 rows of 64 channels for each mean, standard deviation 1, mean up
to 1e5. Every library with its defaults and epsilon 1e-5.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.bench import main as bench
from experiments.bench import peers
from experiments.bench.cases import Case
from experiments.common import environment
from experiments.common.tables import markdown

RATIOS = (0.0, 1.0, 2.0, 3.5, 5.0, 10.0, 1e2, 1e3, 1e4, 1e5)
ROWS, CHANNELS = 4096, 64
DISTRIBUTIONS = ("flax", "dm-haiku", "equinox", "keras", "torch")


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns the errors of each library and a Markdown table."""
    noise = np.random.default_rng(0).normal(size=(ROWS, 1, CHANNELS))
    # Every channel is normalized by itself, so all means are in one array.
    x = (noise + np.array(RATIOS)[:, None]).astype(np.float32).reshape(ROWS, -1)
    exact = x.astype(np.float64)
    want = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + peers.EPSILON)
    case = Case("accuracy", x.shape, "float32", "forward", everyone=True)
    errors = {}
    for name, build in _libraries(case).items():
        y = first(build(case, jnp.asarray(x), None, None)())
        worst = np.abs(y - want).max(0).reshape(len(RATIOS), CHANNELS)
        errors[name] = worst.max(1).tolist()
    header = ["mean / std", *(f"{ratio:g}" for ratio in RATIOS)]
    rows = [[name, *map(_figure, values)] for name, values in errors.items()]
    finite = {n: [e if e == e else None for e in v] for n, v in errors.items()}
    versions = {name: environment.version(name) for name in DISTRIBUTIONS}
    record = {"ratios": RATIOS, "errors": finite, "versions": versions}
    return record, markdown(header, rows)


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


def _figure(error: float) -> str:
    return "NaN" if math.isnan(error) else f"{error:.0e}"
