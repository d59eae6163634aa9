"""Memory of a ResNet-50 training step, compiled and never run.

Residuals are the bytes that `jax.vjp` keeps for the backward pass, temporary is what
the compiled step needs beside its arguments and results.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxbn.linen
from experiments import bench

MEGABYTE = 1e6


class Block(nn.Module):
    """A bottleneck of ResNet-50 v1.5."""

    features: int
    stride: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(self.norm, use_running_average=False, dtype=self.dtype)
        stride, wide = (self.stride, self.stride), 4 * self.features
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), stride)(y)))
        y = norm()(conv(wide, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(wide, (1, 1), stride)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """ResNet-50 v1.5 with 1,000 classes."""

    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(self.norm(use_running_average=False, dtype=self.dtype)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate((3, 4, 6, 3)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                x = Block(64 * 2**stage, stride, self.norm, self.dtype)(x)
        return nn.Dense(1000)(x.mean((1, 2)).astype(jnp.float32))


LIBRARIES = {"jaxbn": jaxbn.linen.BatchNorm, "flax": nn.BatchNorm}


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns megabytes and a Markdown table."""
    dtypes = (jnp.bfloat16,) if config.quick else (jnp.bfloat16, jnp.float32)
    records = [
        {"type": jnp.dtype(dtype).name, "norm": name, **_bytes(norm, dtype, config)}
        for dtype in dtypes
        for name, norm in LIBRARIES.items()
    ]
    header = ["type", "normalization", "residuals, MB", "temporary, MB"]
    rows = [
        [r["type"], r["norm"], f"{r['residuals']:.0f}", f"{r['temporary']:.0f}"]
        for r in records
    ]
    return {"batch": config.batch, "steps": records}, bench.markdown(header, rows)


def _bytes(norm, dtype, config: bench.BenchConfig) -> dict[str, float]:
    model = ResNet50(norm, dtype)
    x = jax.ShapeDtypeStruct((config.batch, 224, 224, 3), dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, stats, x):
        inputs = {"params": params, "batch_stats": stats}
        y, new = model.apply(inputs, x, mutable="batch_stats")
        return jax.nn.logsumexp(y).sum(), new

    def residuals(params, stats, x):
        return jax.vjp(functools.partial(loss, stats=stats, x=x), params, has_aux=True)[
            1
        ]

    arguments = (variables["params"], variables["batch_stats"], x)
    kept = jax.tree.leaves(jax.eval_shape(residuals, *arguments))
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
    analysis = step.memory_analysis()
    assert analysis is not None
    return {
        "residuals": sum(a.size * a.dtype.itemsize for a in kept) / MEGABYTE,
        "temporary": analysis.temp_size_in_bytes / MEGABYTE,
    }
