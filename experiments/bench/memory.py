"""Memory of a ResNet-50 training step, compiled and never run.

Residuals are the bytes that `jax.vjp` keeps for the backward pass, temporary is what
the compiled step needs beside its arguments and results.
"""

import jax
import jax.numpy as jnp

from experiments.bench import main as bench
from experiments.bench.compilers import steps
from experiments.common.tables import markdown
from experiments.scale.network import Variables

MEGABYTE = 1e6


WAYS = {
    "none": steps.WAYS["none"],
    "flax": steps.WAYS["flax"],
    "jaxbn": steps.Way(steps.separate),
    "jaxbn, activation and residual inside": steps.WAYS["jaxbn"],
    'jaxbn, save="recompute"': steps.WAYS["jaxbn-recompute"],
    "none, leaky ReLU": steps.WAYS["none-leaky"],
    "jaxbn, leaky ReLU": steps.WAYS["jaxbn-leaky"],
    'jaxbn, leaky ReLU, save="output"': steps.WAYS["jaxbn-output"],
}


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns megabytes and a Markdown table."""
    dtypes = ("bfloat16",) if config.quick else ("bfloat16", "float32")
    records = [
        {"type": dtype, "norm": name, **_bytes(way, dtype, config)}
        for dtype in dtypes
        for name, way in WAYS.items()
    ]
    header = ["type", "normalization", "residuals, MB", "temporary, MB"]
    rows = [
        [r["type"], r["norm"], f"{r['residuals']:.0f}", f"{r['temporary']:.0f}"]
        for r in records
    ]
    return {"batch": config.batch, "steps": records}, markdown(header, rows)


def _bytes(way: steps.Way, dtype: str, config: bench.BenchConfig) -> dict[str, float]:
    loss, arguments = problem(way, dtype, config.batch)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
    analysis = step.memory_analysis()
    assert analysis is not None
    return {
        "residuals": residual_bytes(loss, arguments) / MEGABYTE,
        "temporary": analysis.temp_size_in_bytes / MEGABYTE,
    }


def problem(way: steps.Way, dtype: str, batch: int, size: int = 224):
    """The loss of a ResNet-50, and the shapes of its arguments."""
    network = steps.network_of(way, dtype)
    variables = jax.eval_shape(network.init, jax.random.key(0))

    def loss(params, stats, x):
        y, new = network.train(Variables(params, stats), x, None)
        return jax.nn.logsumexp(y).sum(), new

    x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.dtype(dtype))
    return loss, (*variables, x)


def residual_bytes(loss, arguments) -> int:
    """Returns the bytes that `jax.vjp` keeps."""

    def kept(params, *others):
        return jax.vjp(lambda p: loss(p, *others), params, has_aux=True)[1]

    leaves = jax.tree.leaves(jax.eval_shape(kept, *arguments))
    return sum(a.size * a.dtype.itemsize for a in leaves)
