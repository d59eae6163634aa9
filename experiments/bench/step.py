"""Time of a whole training step of ResNet-20 on CIFAR shapes, batch 128.

The same network twice, compiled in one process and run in turns: with
`jaxbn.linen.BatchNorm` and with `flax.linen.BatchNorm`. SGD with momentum by optax;
the arguments of the step are donated.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxbn.linen
from experiments.bench import main as bench
from experiments.bench.turns import in_turns
from experiments.common.tables import markdown

BATCH, CLASSES = 128, 10


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    features: int
    stride: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(
            nn.Conv, self.features, (3, 3), use_bias=False, dtype=self.dtype
        )
        y = _relu(self.norm(), conv(strides=self.stride)(x))
        y = conv()(y)
        if x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0),) * 3 + ((0, self.features - x.shape[-1]),))
        return _relu(self.norm(), y, residual=x)


def _relu(norm, x, residual=None):
    """relu(norm(x) + residual), by the layer itself if it can."""
    if getattr(norm, "activation", None) is not None:
        return norm(x, residual=residual)
    y = norm(x)
    return nn.relu(y if residual is None else y + residual)


class ResNet20(nn.Module):
    """ResNet-20 of He et al. (2016), section 4.2."""

    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(
            self.norm, use_running_average=False, momentum=0.9, dtype=self.dtype
        )
        x = nn.Conv(16, (3, 3), use_bias=False, dtype=self.dtype)(x)
        x = _relu(norm(), x)
        for stage in range(3):
            for number in range(3):
                stride = 2 if stage and not number else 1
                x = Block(16 * 2**stage, stride, norm, self.dtype)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)).astype(jnp.float32))


_NORM = jaxbn.linen.BatchNorm
# `fused`: relu and the sum with the shortcut are given to the layer.
NORMS = {
    "jaxbn": _NORM,
    "jaxbn, fused": functools.partial(_NORM, activation="relu"),
    "jaxbn on xla": functools.partial(_NORM, implementation="xla"),
    "flax": nn.BatchNorm,
}


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns medians in milliseconds and a Markdown table of ratios."""
    records, rows = [], []
    for dtype in (jnp.float32, jnp.bfloat16):
        functions = {name: _step(norm, dtype) for name, norm in NORMS.items()}
        times = in_turns(functions, seconds=15 if config.quick else 90)
        medians = {name: time["median"] for name, time in times.items()}
        ratios = {name: medians["flax"] / time for name, time in medians.items()}
        name = jnp.dtype(dtype).name
        records.append({"type": name, "milliseconds": times, "flax / it": ratios})
        figures = [f"{medians[n]:.0f} ms ({ratios[n]:.2f})" for n in NORMS]
        rows.append([name, *figures])
    table = markdown(["type", *NORMS], rows)
    return {"batch": BATCH, "steps": records}, f"{table}\n\n(flax / this library)"


def _step(norm, dtype):
    """A function that trains one step further at every call."""
    model, optimizer = ResNet20(norm, dtype), optax.sgd(0.1, 0.9)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((BATCH, 32, 32, 3), np.float32), dtype)
    labels = jnp.asarray(generator.integers(0, CLASSES, BATCH))
    variables = model.init(jax.random.key(0), x)
    params, stats = variables["params"], variables["batch_stats"]

    def loss(params, stats):
        given = {"params": params, "batch_stats": stats}
        logits, new = model.apply(given, x, mutable="batch_stats")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, stats, memory):
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats)
        change, memory = optimizer.update(gradient, memory, params)
        return value, optax.apply_updates(params, change), stats, memory

    kept = [params, stats, optimizer.init(params)]

    def run():
        value, *kept[:] = step(*kept)
        jax.block_until_ready((value, kept))

    return run
