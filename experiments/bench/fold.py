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
from experiments.bench.turns import in_turns
from experiments.common.tables import markdown


class Block(nnx.Module):
    """A bottleneck of ResNet-50 v1.5."""

    def __init__(self, inputs: int, features: int, stride: int, *, rngs: nnx.Rngs):
        def layer(inputs, outputs, size, stride=1):
            conv = nnx.Conv(
                inputs,
                outputs,
                (size, size),
                (stride, stride),
                use_bias=False,
                rngs=rngs,
            )
            return nnx.Sequential(conv, jaxbn.nnx.BatchNorm(outputs, rngs=rngs))

        wide = 4 * features
        self.first = layer(inputs, features, 1)
        self.second = layer(features, features, 3, stride)
        self.third = layer(features, wide, 1)
        same = inputs == wide and stride == 1
        self.shortcut = nnx.data(None) if same else layer(inputs, wide, 1, stride)

    def __call__(self, x):
        y = nnx.relu(self.second(nnx.relu(self.first(x))))
        x = x if self.shortcut is None else self.shortcut(x)
        return nnx.relu(x + self.third(y))


class ResNet(nnx.Module):
    """ResNet v1.5 with 1,000 classes; `blocks` of 3, 4, 6, 3 is ResNet-50."""

    def __init__(self, blocks: tuple[int, ...], *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 64, (7, 7), (2, 2), use_bias=False, rngs=rngs)
        self.norm = jaxbn.nnx.BatchNorm(64, rngs=rngs)
        self.blocks, inputs = nnx.List([]), 64
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage and not number else 1
                features = 64 * 2**stage
                self.blocks.append(Block(inputs, features, stride, rngs=rngs))
                inputs = 4 * features
        self.head = nnx.Linear(inputs, 1000, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3)) -> ResNet:
    """With statistics, scales and biases that do something, at evaluation."""
    model = ResNet(blocks, rngs=nnx.Rngs(0))
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
    spreads = in_turns(functions, seconds=10 if config.quick else 40)
    times = {name: spread["median"] for name, spread in spreads.items()}
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
