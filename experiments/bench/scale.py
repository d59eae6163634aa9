"""Time of a training step of ResNet-20 on eight simulated devices.

The whole step of `python -m experiments train --config cifar10-resnet20`, with
`jaxbn` and with `flax.linen.BatchNorm`, as one program for all devices (`jit`) and as
one program per device (`shard_map`); all of one type run in turns. The devices share
the cores of this machine: only the ratio means something.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import main as bench
from experiments.bench.turns import Run, in_turns, spread
from experiments.common.tables import markdown
from experiments.scale import config as scale_config
from experiments.scale.layout import Layout, make_layout, simulated
from experiments.scale.network import Network, make_network
from experiments.scale.optimizer import make_optimizer
from experiments.scale.step import Step

DEVICES, BATCH = 8, 128
PARALLEL, NORMS = ("jit", "shard_map"), ("jaxbn", "flax")


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns medians in milliseconds and a Markdown table of ratios."""
    devices = simulated(DEVICES)
    records, rows = [], []
    for dtype in ("float32", "bfloat16"):
        functions = {
            f"{parallel}, {norm}": step(devices, parallel, norm, dtype)
            for parallel in PARALLEL
            for norm in NORMS
        }
        rounds = in_turns(functions, seconds=15 if config.quick else 45)
        times = {name: spread(values) for name, values in rounds.items()}
        medians = {name: time["median"] for name, time in times.items()}
        ratios = {
            parallel: medians[f"{parallel}, flax"] / medians[f"{parallel}, jaxbn"]
            for parallel in PARALLEL
        }
        records.append({"type": dtype, "milliseconds": times, "flax / jaxbn": ratios})
        for parallel, ratio in ratios.items():
            figures = [f"{medians[f'{parallel}, {norm}']:.0f} ms" for norm in NORMS]
            rows.append([dtype, parallel, *figures, f"{ratio:.2f}"])
    table = markdown(["type", "parallel", *NORMS, "flax / jaxbn"], rows)
    return {"batch": BATCH, "devices": DEVICES, "steps": records}, table


def step(devices: list[Any], parallel: str, norm: str, dtype: str, *, depth: int = 20):
    """A function that trains one step further at every call, and returns the loss."""
    options = scale_config.ScaleConfig(
        model=scale_config.Model(depth=depth, norm=norm, dtype=dtype),  # pyright: ignore
        devices=scale_config.Devices(parallel),  # pyright: ignore
    )
    layout = make_layout(options.devices, found=devices)
    network = make_network(
        options.model,
        options.data,
        batch_size=BATCH,
        data_devices=len(devices),
        axis_name=layout.axis_name,
    )
    return trained(network, layout, (BATCH, 32, 32, 3))


def trained(
    network: Network, layout: Layout, images: tuple[int, ...], dtype: Any = np.float32
) -> Run:
    """Trains a network one step further at every call, which gives the loss.

    The images have that shape and type, and ten classes.
    """
    rows = images[0]
    optimizer = make_optimizer(scale_config.Optimizer(batch_size=rows))
    one = Step(network, optimizer, rows, axis_name=layout.axis_name)
    state = layout.init(one.init, 0)
    generator = np.random.default_rng(0)
    batch = layout.put_batch(
        {
            "image": generator.standard_normal(images, np.float32).astype(dtype),
            "label": generator.integers(0, 10, rows, np.int32),
        }
    )
    compiled = layout.spread(one, state).lower(state, batch).compile()
    kept = [state]

    def start():
        kept[0], metrics = compiled(kept[0], batch)
        return metrics.loss

    def wait(loss):
        jax.block_until_ready(kept)
        return jnp.asarray(loss)

    return Run(start, compiled, wait)
