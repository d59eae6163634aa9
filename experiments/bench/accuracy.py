"""Worst absolute error of the normalized output, first training step, against float64.

Inputs: float32, 4,096 rows of 64 channels, standard deviation 1, mean up to 1e5.
Every library with its defaults and epsilon 1e-5.
"""

import functools
import importlib.metadata
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.bench import main as bench
from experiments.common.tables import markdown

RATIOS = (0.0, 1.0, 2.0, 3.5, 5.0, 10.0, 1e2, 1e3, 1e4, 1e5)
ROWS, CHANNELS, EPSILON = 4096, 64, 1e-5


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns the errors of each library and a Markdown table."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(ROWS, CHANNELS))
    libraries = {n: run for n, run in LIBRARIES.items() if _installed(n)}
    errors: dict[str, list[float]] = {name: [] for name in libraries}
    for ratio in RATIOS:
        x = (noise + ratio).astype(np.float32)
        exact = x.astype(np.float64)
        want = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + EPSILON)
        for name, run in libraries.items():
            y = np.asarray(run(x), np.float64)
            errors[name].append(float(np.abs(y - want).max()))
    header = ["mean / std", *(f"{ratio:g}" for ratio in RATIOS)]
    rows = [[name, *map(_figure, values)] for name, values in errors.items()]
    finite = {n: [e if e == e else None for e in v] for n, v in errors.items()}
    record = {"ratios": RATIOS, "errors": finite, "versions": _versions()}
    return record, markdown(header, rows)


def _installed(name: str) -> bool:
    """A peer that is not installed has no row (torch above Python 3.11)."""
    return importlib.util.find_spec(name.split(",")[0]) is not None


def _figure(error: float) -> str:
    return "NaN" if math.isnan(error) else f"{error:.0e}"


def _jaxbn(x):
    return jax.jit(jaxbn.batch_norm)(x, jaxbn.init_state(CHANNELS))[0]


def _jaxbn_without_kernels(x):
    run = functools.partial(jaxbn.batch_norm, implementation="xla")
    return jax.jit(run)(x, jaxbn.init_state(CHANNELS))[0]


def _jaxbn_synchronised(x):
    state = jaxbn.init_state(CHANNELS)

    def one(part):
        return jaxbn.batch_norm(part, state, axis_name="replicas")[0]

    parts = x.reshape(8, -1, CHANNELS)
    return jax.jit(jax.vmap(one, axis_name="replicas"))(parts).reshape(x.shape)


def _flax(x, **options):
    from flax import linen as nn

    layer = nn.BatchNorm(use_running_average=False, epsilon=EPSILON, **options)
    variables = layer.init(jax.random.key(0), x)
    return layer.apply(variables, x, mutable="batch_stats")[0]


def _flax_two_pass(x):
    return _flax(x, use_fast_variance=False)


def _haiku(x):
    import haiku as hk

    def forward(x):
        layer = hk.BatchNorm(
            create_scale=True, create_offset=True, decay_rate=0.99, eps=EPSILON
        )
        return layer(x, is_training=True)

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.key(0), x)
    return model.apply(params, state, jax.random.key(0), x)[0]


def _equinox(x):
    import equinox as eqx

    layer = eqx.nn.BatchNorm(CHANNELS, "batch", mode="batch", eps=EPSILON)
    state = eqx.nn.State(layer)
    run = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return run(jnp.asarray(x), state)[0]


def _keras(x):
    import os

    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    return keras.layers.BatchNormalization(epsilon=EPSILON)(x, training=True)


def _torch(x):
    import torch

    layer = torch.nn.BatchNorm1d(CHANNELS, eps=EPSILON)
    return layer(torch.from_numpy(x)).detach().numpy()


LIBRARIES = {
    "jaxbn": _jaxbn,
    "jaxbn, without kernels": _jaxbn_without_kernels,
    "jaxbn, 8 replicas": _jaxbn_synchronised,
    "flax": _flax,
    "flax, two passes": _flax_two_pass,
    "haiku": _haiku,
    "equinox": _equinox,
    "keras": _keras,
    "torch": _torch,
}


DISTRIBUTIONS = ("flax", "dm-haiku", "equinox", "keras", "torch")


def _versions() -> dict[str, str]:
    """The versions of the libraries compared."""
    return {
        d.metadata["Name"].lower(): d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"].lower() in DISTRIBUTIONS
    }
