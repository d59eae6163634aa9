"""Time of one layer, forward and backward, on the activations of ResNet-50.

jaxbn and flax.linen compiled in one process, measured in turns, both orders.
"""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxbn
from experiments import bench

SHAPES = (  # height and width, channels
    (112, 64),
    (56, 64),
    (56, 128),
    (56, 256),
    (28, 128),
    (28, 256),
    (28, 512),
    (14, 256),
    (14, 512),
    (14, 1024),
    (7, 512),
    (7, 2048),
)
DTYPES = (jnp.float32, jnp.bfloat16)


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns medians in milliseconds and a Markdown table of ratios."""
    shapes = SHAPES[3::4] if config.quick else SHAPES
    rounds = 5 if config.quick else 21
    records, rows = [], []
    for dtype in DTYPES:
        ratios, name = [], jnp.dtype(dtype).name
        for size, channels in shapes:
            arguments = inputs((config.batch, size, size, channels), dtype)
            times = compare({"jaxbn": ours, "flax": flax}, arguments, rounds=rounds)
            ratios.append(times["flax"] / times["jaxbn"])
            shape = f"{config.batch}x{size}x{size}x{channels}"
            records.append({"shape": shape, "dtype": name, "ms": times})
            rows.append([shape, name, *_figures(times), f"{ratios[-1]:.2f}"])
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        rows.append(["geometric mean", name, "", "", f"{mean:.2f}"])
    header = ["shape", "type", "jaxbn, ms", "flax, ms", "flax / jaxbn"]
    return {"layers": records}, bench.markdown(header, rows)


def _figures(times: dict[str, float]) -> list[str]:
    return [f"{times[name]:.2f}" for name in ("jaxbn", "flax")]


def inputs(shape: tuple[int, ...], dtype) -> tuple:
    """x, scale, bias, running mean, cotangent of y."""
    generator = np.random.default_rng(0)
    channels = shape[-1]
    x, dy = (jnp.asarray(generator.normal(size=shape), dtype) for _ in range(2))
    return x, jnp.ones(channels), jnp.zeros(channels), jnp.zeros(channels), dy


def ours(x, scale, bias, mean, dy):
    """y, the new state and the gradients by jaxbn."""
    state = jaxbn.BatchNormState(mean, jnp.ones_like(mean), jnp.ones_like(mean))

    def forward(x, scale, bias):
        return jaxbn.batch_norm(x, state, scale, bias, debias=False)

    y, backward, new = jax.vjp(forward, x, scale, bias, has_aux=True)
    return y, new, backward(dy)


def flax(x, scale, bias, mean, dy):
    """The same by flax.linen."""
    layer = nn.BatchNorm(use_running_average=False, dtype=x.dtype)
    stats = {"mean": mean, "var": jnp.ones_like(mean)}

    def forward(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return layer.apply(variables, x, mutable="batch_stats")

    y, backward, new = jax.vjp(forward, x, scale, bias, has_aux=True)
    return y, new, backward(dy)


def compare(
    functions: dict[str, Callable], arguments: tuple, *, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each function, run in turns and in both orders."""
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    for run in compiled.values():
        jax.block_until_ready(run(*arguments))
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for number in range(rounds):
        for name in list(compiled)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*arguments))
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}
