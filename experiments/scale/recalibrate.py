"""Exact statistics of the training data for the final weights of a run.

Run: python -m experiments recalibrate --out DIR --samples 10000

Running statistics are an average over weights that have changed since. These are those
of one set of images under the weights there are, each batch normalized with its own
statistics as in training (Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021,
https://arxiv.org/abs/2105.07576, section 3).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import jaxbn.deploy
from experiments.common.options import Natural, Positive, check_limits
from experiments.scale import arrays, pipeline
from experiments.scale.config import ScaleConfig
from experiments.scale.network import Network, Variables, with_variables


@dataclass(frozen=True)
class RecalibrateConfig:
    """Computes new running statistics for a trained ResNet."""

    out: Path = Path("runs/scale")
    """Directory of the run; nothing in it is changed but for the new directory."""
    to: Path | None = None
    """Directory of the new statistics. Default: `recalibrated` in that of the run."""
    samples: Positive = 10_000
    """Training images."""
    batch_size: Natural = 0
    """Images at a time, which are normalized together; 0: as in training."""


def main(config: RecalibrateConfig) -> int:
    """Writes the statistics, for `--statistics` of other commands."""
    check_limits(config)
    begun, network, variables = arrays.load_run(config.out, statistics=None)
    to = config.to or config.out / "recalibrated"
    arrays.new_folder(to, option="--to")
    size = config.batch_size or begun.optimizer.batch_size
    batches = training_batches(begun, config.samples, size)
    new = recalibrated(network, variables, batches)
    about = {"samples": config.samples, "batch_size": size}
    arrays.write_statistics(to, new.batch_stats, about)
    print(f"statistics of {config.samples} training images: {to}")
    return 0


def training_batches(begun: ScaleConfig, samples: int, size: int) -> Iterator[dict]:
    """The first `samples` training images in the order of training, as batches.

    They are augmented as in training; the last batch is masked where it is too long.
    """
    stream = pipeline.train_batches(
        begun.data, batch_size=size, seed=begun.seed, process=0, processes=1
    )
    for number in range(math.ceil(samples / size)):
        mask = np.arange(size) < samples - number * size
        yield next(stream) | {"mask": mask}


def recalibrated(
    network: Network, variables: Variables, batches: Iterable[dict]
) -> Variables:
    """The same weights with the statistics of all of `batches`.

    Args:
        network: linen or nnx.
        variables: its weights and old statistics.
        batches: "image" and "mask", which is false for what does not count.
    """
    if isinstance(network.module, nnx.Module):
        model = jaxbn.deploy.nnx_model(
            with_variables(network, variables), call=_in_training
        )
    else:
        model = jaxbn.deploy.linen_model(
            network.module, variables._asdict(), call=_in_training
        )
    used = ({"image": b["image"], "mask": b["mask"]} for b in batches)
    states = jaxbn.deploy.recalibrate(model.collect, model.states, used)
    return _variables(model.replace(states))


def _in_training(module: Any, batch: dict) -> Any:
    return module(batch["image"], train=True, mask=batch["mask"])


def _variables(model: Any) -> Variables:
    if not isinstance(model, nnx.Module):
        return Variables(model["params"], model["batch_stats"])
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))
