"""Errors on batches that are not plain: masks over replicas, and the first evaluation.

Inputs: float32, 8 replicas of 64 rows of 64 channels, mean 3 and standard deviation 2.
Errors are the worst of the normalized output, against float64.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxbn
from experiments.bench import peers
from experiments.common.tables import markdown

REPLICAS, ROWS, CHANNELS = 8, 64, 64
# The rows of each replica that count.
UNEVEN = tuple(range(8, 72, 8))
EMPTY = (0, *UNEVEN[1:])
LAYERS = {"jaxbn": jaxbn.linen.BatchNorm, "flax": nn.BatchNorm}


def measure() -> tuple[dict, str]:
    """Returns the errors of each library by case, and a Markdown table."""
    rng = np.random.default_rng(0)
    x = (3 + 2 * rng.normal(size=(REPLICAS, ROWS, CHANNELS))).astype(np.float32)
    errors = {
        "masks that keep 8 to 64 rows of each replica": _each(_masked, x, UNEVEN),
        "the same, and one replica without any": _each(_masked, x, EMPTY),
        "evaluation after one step (jaxbn: debias)": _each(_first_evaluation, x[0]),
    }
    rows = [[case, *map(figure, e.values())] for case, e in errors.items()]
    return errors, markdown(["case", *LAYERS], rows)


def _each(error, *args) -> dict[str, float | None]:
    """The error of each library."""
    return {name: known(error(layer, *args)) for name, layer in LAYERS.items()}


def known(error: float) -> float | None:
    """Returns an error as JSON can hold it: None if it is NaN."""
    return None if math.isnan(error) else float(error)


def figure(error: float | None) -> str:
    """Returns a `known` error as the tables show it."""
    return "NaN" if error is None else f"{error:.0e}"


def normalized(x, seen) -> np.ndarray:
    """Returns `x` by the statistics of those rows that are seen, in float64."""
    exact = np.asarray(x, np.float64)
    counted = exact[seen]
    return (exact - counted.mean(0)) / np.sqrt(counted.var(0) + peers.EPSILON)


def _masked(kind, x, counts):
    layer = kind(use_running_average=False, axis_name="replicas")
    seen = np.arange(ROWS) < np.array(counts)[:, None]
    variables = layer.init(jax.random.key(0), x[0])

    def run(x, mask):
        return layer.apply(variables, x, mask=mask, mutable="batch_stats")[0]

    y = jax.jit(jax.vmap(run, axis_name="replicas"))(x, jnp.asarray(seen)[..., None])
    return np.abs(y - normalized(x, seen))[seen].max()


def _first_evaluation(kind, x):
    options = {"debias": True} if kind is jaxbn.linen.BatchNorm else {}
    layer = kind(**options)
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    _, new = layer.apply(variables, x, use_running_average=False, mutable="batch_stats")
    y = layer.apply({**variables, **new}, x, use_running_average=True)
    return np.abs(y - normalized(x, slice(None))).max()
