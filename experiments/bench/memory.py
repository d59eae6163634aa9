"""Memory of a ResNet-50 training step, compiled and never run.

Residuals are the bytes that `jax.vjp` keeps for the backward pass, temporary is what
the compiled step needs beside its arguments and results.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxbn.linen
from experiments.bench import main as bench
from experiments.common.tables import markdown

MEGABYTE = 1e6


class Apart(nn.Module):
    """Normalization, sum and activation, each by itself."""

    norm: Any
    activation: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x, residual=None):
        if self.norm is not None:
            x = self.norm(use_running_average=False, dtype=self.dtype)(x)
        x = x if residual is None else x + residual
        return x if self.activation is None else getattr(nn, self.activation)(x)


class Together(nn.Module):
    """All three as one layer of jaxbn."""

    save: Any
    activation: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x, residual=None):
        layer = jaxbn.linen.BatchNorm(
            use_running_average=False,
            activation=self.activation,
            save=self.save,
            dtype=self.dtype,
        )
        return layer(x, residual=residual)


class Way(NamedTuple):
    """One way to normalize: a row of the table."""

    layer: Any
    activation: str = "relu"
    policy: Any = None


WAYS = {
    "none": Way(functools.partial(Apart, None)),
    "flax": Way(functools.partial(Apart, nn.BatchNorm)),
    "jaxbn": Way(functools.partial(Apart, jaxbn.linen.BatchNorm)),
    "jaxbn, activation and residual inside": Way(functools.partial(Together, "input")),
    'jaxbn, save="recompute"': Way(
        functools.partial(Together, "recompute"), policy=jaxbn.recompute_policy
    ),
    "none, leaky ReLU": Way(functools.partial(Apart, None), "leaky_relu"),
    "jaxbn, leaky ReLU": Way(functools.partial(Together, "input"), "leaky_relu"),
    'jaxbn, leaky ReLU, save="output"': Way(
        functools.partial(Together, "output"), "leaky_relu"
    ),
}


class Block(nn.Module):
    """A bottleneck of ResNet-50 v1.5."""

    features: int
    stride: int
    way: Way
    dtype: Any

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        layer, act = self.way.layer, self.way.activation
        stride, wide = (self.stride, self.stride), 4 * self.features
        y = layer(act, self.dtype)(conv(self.features, (1, 1))(x))
        y = layer(act, self.dtype)(conv(self.features, (3, 3), stride)(y))
        y = conv(wide, (1, 1))(y)
        if x.shape != y.shape:
            x = layer(None, self.dtype)(conv(wide, (1, 1), stride)(x))
        return layer(act, self.dtype)(y, x)


class ResNet50(nn.Module):
    """ResNet-50 v1.5 with 1,000 classes."""

    way: Way
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False, dtype=self.dtype)(x)
        x = self.way.layer(self.way.activation, self.dtype)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate((3, 4, 6, 3)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                x = Block(64 * 2**stage, stride, self.way, self.dtype)(x)
        return nn.Dense(1000)(x.mean((1, 2)).astype(jnp.float32))


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns megabytes and a Markdown table."""
    dtypes = (jnp.bfloat16,) if config.quick else (jnp.bfloat16, jnp.float32)
    records = [
        {"type": jnp.dtype(dtype).name, "norm": name, **_bytes(way, dtype, config)}
        for dtype in dtypes
        for name, way in WAYS.items()
    ]
    header = ["type", "normalization", "residuals, MB", "temporary, MB"]
    rows = [
        [r["type"], r["norm"], f"{r['residuals']:.0f}", f"{r['temporary']:.0f}"]
        for r in records
    ]
    return {"batch": config.batch, "steps": records}, markdown(header, rows)


def _bytes(way: Way, dtype, config: bench.BenchConfig) -> dict[str, float]:
    loss, arguments = problem(ResNet50(way, dtype), way, dtype, config.batch)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
    analysis = step.memory_analysis()
    assert analysis is not None
    return {
        "residuals": residual_bytes(loss, arguments) / MEGABYTE,
        "temporary": analysis.temp_size_in_bytes / MEGABYTE,
    }


def problem(model: nn.Module, way: Way, dtype, batch: int, size: int = 224):
    """The loss of a model, and the shapes of its arguments."""
    x = jax.ShapeDtypeStruct((batch, size, size, 3), dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, stats, x):
        inputs = {"params": params, "batch_stats": stats}
        y, new = model.apply(inputs, x, mutable="batch_stats")
        return jax.nn.logsumexp(y).sum(), new

    if way.policy is not None:
        loss = jax.checkpoint(loss, policy=way.policy)
    return loss, (variables["params"], variables.get("batch_stats", {}), x)


def residual_bytes(loss, arguments) -> int:
    """What `jax.vjp` keeps, in bytes."""

    def kept(params, *others):
        return jax.vjp(lambda p: loss(p, *others), params, has_aux=True)[1]

    leaves = jax.tree.leaves(jax.eval_shape(kept, *arguments))
    return sum(a.size * a.dtype.itemsize for a in leaves)
