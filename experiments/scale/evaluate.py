"""Evaluates a trained run, with one of three kinds of statistics.

Run: python -m experiments eval --out DIR --bn-stats precise
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.common import files
from experiments.common.errors import UserError, writing
from experiments.common.options import Natural, Positive, check_limits
from experiments.scale import arrays, pipeline, recalibrate
from experiments.scale.network import Network, Variables
from experiments.scale.step import evaluate, means


@dataclass(frozen=True)
class EvalConfig:
    """Evaluates a trained ResNet."""

    out: Path = Path("runs/scale")
    """Directory of the run."""
    bn_stats: Literal["ema", "precise", "batch"] = "ema"
    """Normalize with the running statistics (`ema`), with those of `--samples` training
    images for the final weights (`precise`), or with those of each evaluation batch
    (`batch`)."""
    samples: Positive = 10_000
    """Training images for `precise`."""
    batch_size: Natural = 0
    """Images at a time; 0: as in training."""
    statistics: Path | None = None
    """Directory of running statistics written by `recalibrate`, in place of those of
    the run; with `--bn-stats ema`."""


def main(config: EvalConfig) -> int:
    """Prints loss and accuracy, and writes them into the directory of the run.

    The file is `eval_given.json` with `--statistics`, else `eval_` and their kind.
    """
    check_limits(config)
    if config.statistics and config.bn_stats != "ema":
        raise UserError(
            "`--bn-stats` must be ema with `--statistics`, which has running "
            f"statistics, got {config.bn_stats}. Leave one of them out."
        )
    begun, network, variables = arrays.load_run(
        config.out, statistics=config.statistics
    )
    size = config.batch_size or begun.optimizer.batch_size
    if config.bn_stats == "precise":
        images = recalibrate.training_batches(begun, config.samples, size)
        variables = recalibrate.recalibrated(network, variables, images)
    batches = pipeline.eval_batches(begun.data, batch_size=size, process=0, processes=1)
    found = score(network, variables, batches, own=config.bn_stats == "batch")
    kind = "given" if config.statistics else config.bn_stats
    found |= {"bn_stats": kind}
    if config.statistics:
        found |= {"statistics": str(config.statistics)}
    with writing(config.out):
        files.write_json(config.out / f"eval_{kind}.json", files.plain(found))
    print(
        f"accuracy {100 * found['accuracy']:.2f} %, loss {found['loss']:.4f} on "
        f"{found['examples']} examples, statistics: {config.statistics or kind}"
    )
    return 0


def score(
    network: Network, variables: Variables, batches: Iterable[dict], *, own: bool
) -> dict[str, Any]:
    """Loss and accuracy, every valid example counted once.

    Args:
        network: what is evaluated.
        variables: its weights and statistics.
        batches: "image", "label" and "mask", which is false for padding.
        own: normalize each batch with its own statistics, padding left out.

    Returns:
        "loss" and "accuracy" per example, and "examples".
    """

    @jax.jit
    def sums(variables, batch):
        if own:
            logits, _ = network.train(variables, batch["image"], batch["mask"])
        else:
            logits = network.infer(variables, batch["image"])
        return evaluate(logits, batch)

    return means(sums(variables, batch) for batch in batches)
