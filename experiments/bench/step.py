"""Time of a whole training step of ResNet-20 on CIFAR shapes, batch 128.

The same network compiled in one process and run in turns: with `jaxbn.linen.BatchNorm`
and with `flax.linen.BatchNorm`. The step is that of `python -m experiments train`.
"""

from functools import partial

import jax
import jax.numpy as jnp

import jaxbn.linen
from experiments.bench import main as bench
from experiments.bench.memory import apart
from experiments.bench.scale import BATCH, trained
from experiments.bench.turns import in_turns
from experiments.common.tables import markdown
from experiments.nets.apart import LinenFlaxNorm
from experiments.nets.resnet import Layers, LinenResNet
from experiments.scale import config as scale_config
from experiments.scale.layout import make_layout
from experiments.scale.network import of_linen

# `fused`: relu and the sum with the shortcut are given to the layer.
NORMS = {
    "jaxbn": apart,
    "jaxbn, fused": jaxbn.linen.BatchNorm,
    "jaxbn on xla": partial(apart, implementation="xla"),
    "flax": LinenFlaxNorm,
}


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns medians in milliseconds and a Markdown table of ratios."""
    records, rows = [], []
    for dtype in ("float32", "bfloat16"):
        functions = {name: _step(norm, dtype) for name, norm in NORMS.items()}
        times = in_turns(functions, seconds=15 if config.quick else 90)
        medians = {name: time["median"] for name, time in times.items()}
        ratios = {name: medians["flax"] / time for name, time in medians.items()}
        records.append({"type": dtype, "milliseconds": times, "flax / it": ratios})
        figures = [f"{medians[n]:.0f} ms ({ratios[n]:.2f})" for n in NORMS]
        rows.append([dtype, *figures])
    table = markdown(["type", *NORMS], rows)
    return {"batch": BATCH, "steps": records}, f"{table}\n\n(flax / this library)"


def _step(norm, dtype: str, depth: int = 20):
    """A function that trains one step further at every call."""
    norm = partial(norm, momentum=0.9, dtype=jnp.dtype(dtype))
    module = LinenResNet(depth, 3, 10, Layers(norm, jnp.dtype(dtype)))
    layout = make_layout(scale_config.Devices(), found=jax.devices()[:1])
    return trained(of_linen(module, (32, 32, 3)), layout)
