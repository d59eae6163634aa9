"""Inference of a ResNet-50 with batch normalization and with it folded away.

The model is in float32, with random parameters and statistics; images are 224 x 224, or
112 x 112 with `--quick`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxbn.deploy
import jaxbn.nnx
from experiments.bench import main as bench
from experiments.bench.turns import in_turns, spread
from experiments.common.tables import markdown
from experiments.nets.resnet import Layers, NnxResNet


def resnet(depth: int = 50) -> NnxResNet:
    """With statistics, scales and biases that do something, at evaluation."""
    layers = Layers(jaxbn.nnx.BatchNorm, rngs=nnx.Rngs(0))
    model = NnxResNet(depth, 3, 1000, layers)
    rng = np.random.default_rng(0)
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, jaxbn.nnx.BatchNorm):
            size = layer.mean.shape
            for name in ("mean", "bias"):
                values = jnp.asarray(rng.normal(0, 0.1, size), jnp.float32)
                getattr(layer, name)[...] = values
            for name in ("var", "scale"):
                values = jnp.asarray(rng.uniform(0.5, 1.5, size), jnp.float32)
                getattr(layer, name)[...] = values
    model.eval()
    return model


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns medians in milliseconds and a Markdown table."""
    size = 112 if config.quick else 224
    shape = (config.batch, size, size, 3)
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    model = resnet()
    folded, report = jaxbn.deploy.fold_nnx(model, x[:1])
    models = {"as trained": model, "folded": folded}
    functions = {name: _run(model, x) for name, model in models.items()}
    rounds = in_turns(functions, seconds=10 if config.quick else 40)
    spreads = {name: spread(values) for name, values in rounds.items()}
    times = {name: found["median"] for name, found in spreads.items()}
    ratio = times["as trained"] / times["folded"]
    record = {
        "shape": shape,
        "folded": len(report.folded),
        "kept": report.kept,
        "error": report.error,
        "milliseconds": spreads,
        "ratio": ratio,
    }
    header = ["ResNet-50, float32", *functions, "ratio", "folded", "error"]
    name = "x".join(map(str, shape))
    figures = [f"{ms:.1f} ms" for ms in times.values()]
    counts = f"{len(report.folded)} of {len(report.folded) + len(report.kept)}"
    row = [name, *figures, f"{ratio:.2f}", counts, f"{report.error:.0e}"]
    return record, markdown(header, [row])


def _run(model: nnx.Module, x):
    """Runs the compiled model; no parameter is a constant of the program."""
    graph, state = nnx.split(model)
    function = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda: jax.block_until_ready(function(state, x))
