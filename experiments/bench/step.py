"""Time of a whole training step: ResNet-20 on images of CIFAR's size, and ResNet-50.

The same network compiled in one process and run in turns: with `jaxbn.linen.BatchNorm`
and with `flax.linen.BatchNorm`. The step is that of `python -m experiments train`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn.linen
from experiments.bench import main as bench
from experiments.bench.compilers.steps import separate
from experiments.bench.scale import BATCH, trained
from experiments.bench.turns import in_turns, spread
from experiments.common.tables import markdown
from experiments.nets.apart import linen_flax_norm
from experiments.nets.resnet import Layers, LinenResNet
from experiments.scale import config as scale_config
from experiments.scale.layout import make_layout
from experiments.scale.network import of_linen

# `fused`: relu and the sum with the shortcut are given to the layer.
NORMS = {
    "jaxbn": separate,
    "jaxbn, fused": jaxbn.linen.BatchNorm,
    "jaxbn on xla": partial(separate, implementation="xla"),
    "flax": linen_flax_norm,
}
SIZES = {20: 32, 50: 224}
"""Height and width of the images, by the depth of the network."""


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns times in milliseconds and a Markdown table with ratios."""
    records, rows = [], []
    for depth, size in SIZES.items():
        if config.quick and depth > 20:
            continue
        images = (BATCH if depth == 20 else config.batch, size, size, 3)
        for dtype in ("float32", "bfloat16"):
            record = _record(depth, images, dtype, seconds=15 if config.quick else 90)
            records.append(record)
            rows.append([f"ResNet-{depth}", str(images[0]), dtype, *_cells(record)])
            jax.clear_caches()
    table = markdown(["network", "batch", "type", *NORMS], rows)
    return {"steps": records}, f"{table}\n\n(flax / this library, and quartiles)"


def _record(
    depth: int, images: tuple[int, int, int, int], dtype: str, *, seconds: float
) -> dict:
    functions = {
        name: _step(norm, depth, images, dtype) for name, norm in NORMS.items()
    }
    rounds = in_turns(functions, seconds=seconds)
    flax = np.array(rounds["flax"])
    return {
        "network": f"ResNet-{depth}",
        "images": list(images),
        "type": dtype,
        "milliseconds": {name: spread(values) for name, values in rounds.items()},
        # Of the times of one round, since the machine may be slower in the next.
        "flax / it": {name: spread(flax / values) for name, values in rounds.items()},
    }


def _cells(record: dict) -> list[str]:
    found = []
    for name, time in record["milliseconds"].items():
        low, middle, high = record["flax / it"][name].values()
        ratio = f"{middle:.2f}, {low:.2f} to {high:.2f}"
        found.append(f"{time['median']:.0f} ms ({ratio})")
    return found


def _step(norm, depth: int, images: tuple[int, int, int, int], dtype: str):
    """A function that trains one step further at every call."""
    norm = partial(norm, momentum=0.9, dtype=jnp.dtype(dtype))
    module = LinenResNet(depth, 3, 10, Layers(norm, jnp.dtype(dtype)))
    layout = make_layout(scale_config.Devices(), found=jax.devices()[:1])
    return trained(of_linen(module, images[1:]), layout, images)
