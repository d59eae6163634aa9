"""Folds the batch normalization of a trained run into its convolutions.

Run: python -m experiments fold --out DIR --to DIR2
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

import jaxbn.deploy
from experiments.common import files
from experiments.common.errors import UserError
from experiments.scale import arrays, pipeline
from experiments.scale import config as scale_config
from experiments.scale.network import Network, Variables, with_variables


@dataclass(frozen=True)
class FoldConfig:
    """Folds batch normalization into the convolutions of a trained ResNet."""

    out: Path = Path("runs/scale")
    """Directory of the run."""
    to: Path = Path("runs/folded")
    """New directory of the folded variables."""
    statistics: Path | None = None
    """Directory of running statistics written by `recalibrate`."""


class Folded(NamedTuple):
    """A network whose batch normalization is folded.

    Attributes:
        infer: `infer(images)` returns float32 logits.
        values: nested dictionaries of all its arrays.
        report: what went where.
        difference: largest absolute difference of the logits on the example.
    """

    infer: Callable[[Array], Array]
    values: Any
    report: jaxbn.deploy.FoldReport
    difference: float


def main(config: FoldConfig) -> int:
    """Writes the variables, and prints how far the logits are from the original."""
    begun, network, variables = arrays.load_run(
        config.out, statistics=config.statistics
    )
    to = arrays.new_folder(config.to, option="--to")
    dtype = begun.model.dtype
    result = folded(network, variables, example(begun), dtype=dtype)
    arrays.write_tree(to / "variables.safetensors", result.values)
    about = {
        "api": begun.model.api,
        "folded": {name: list(to) for name, to in result.report.folded.items()},
        "kept": result.report.kept,
        "max_difference": result.difference,
    }
    files.write_json(to / "about.json", about)
    for name, reason in result.report.kept.items():
        print(f"kept: {name}, because {reason}")
    print(
        f"{len(result.report.folded)} folded, {len(result.report.kept)} kept; largest "
        f"difference of the logits {result.difference:.1e}\nfiles: {to}"
    )
    return 0


def folded(
    network: Network, variables: Variables, images: Array, *, dtype: str = "float32"
) -> Folded:
    """The network with its batch normalization folded.

    A linen model stays as it is with other variables: what is folded is the identity.
    A nnx model has no folded layers any more.

    Args:
        network: linen or nnx.
        variables: its weights and statistics.
        images: an example to compare on.
        dtype: type that the network computes in: the tolerance.
    """
    tolerance = TOLERANCE[dtype]
    if isinstance(network.module, nnx.Module):
        model: Any = with_variables(network, variables)
        model, report = jaxbn.deploy.fold_nnx(model, images, tolerance=tolerance)
        values: Any = nnx.to_pure_dict(nnx.state(model))
        infer = model.__call__
    else:
        values, report = jaxbn.deploy.fold_linen(
            network.module, variables._asdict(), images, tolerance=tolerance
        )
        new = Variables(values["params"], values["batch_stats"])
        infer = functools.partial(network.infer, new)
    want = jax.jit(network.infer)(variables, images)
    return Folded(infer, values, report, difference(jax.jit(infer)(images), want))


TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest accepted difference of two ways to compute the same logits, divided by the
largest logit or one. A bfloat16 has 8 bits, and a deep network many of them."""


def difference(got: Any, want: Any) -> float:
    """The largest absolute difference."""
    return float(np.abs(np.asarray(got) - np.asarray(want)).max(initial=0))


def example(begun: scale_config.ScaleConfig) -> Array:
    """The first evaluation images, at most 64."""
    size = min(64, begun.optimizer.batch_size)
    batches = pipeline.eval_batches(begun.data, batch_size=size, process=0, processes=1)
    for batch in batches:
        return jax.numpy.asarray(batch["image"])
    raise UserError(
        "The evaluation data must have an example to compare on, got none. Check "
        "`--source` and `--data-dir` of the run."
    )
