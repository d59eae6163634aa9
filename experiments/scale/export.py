"""Exports a trained run as one file that runs without this program.

Run: python -m experiments export --out DIR --to FILE

The file is a serialized `jax.export.Exported`: the folded network with its weights, for
any number of images, on CPU, CUDA and TPU. It is loaded by

    jax.export.deserialize(Path(FILE).read_bytes()).call(images)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from experiments.common import files
from experiments.common.errors import UserError
from experiments.scale import arrays, fold
from experiments.scale.network import Network, Variables

_PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True)
class ExportConfig:
    """Exports the folded inference of a trained ResNet."""

    out: Path = Path("runs/scale")
    """Directory of the run."""
    to: Path = Path("runs/network.jaxexport")
    """New file."""
    statistics: Path | None = None
    """Directory of running statistics written by `recalibrate`."""


def main(config: ExportConfig) -> int:
    """Writes the file, if it gives the outputs of the run."""
    begun, network, variables = arrays.load_run(
        config.out, statistics=config.statistics
    )
    if config.to.exists():
        raise UserError(
            f"`--to` must be a new file, got '{config.to}'. Pass another one."
        )
    files.make_folder(config.to.parent, option="--to")
    images = fold.example(begun)
    dtype = begun.model.dtype
    infer = fold.folded(network, variables, images, dtype=dtype).infer
    content = exported(infer, images)
    found = check(content, network, variables, images, dtype=dtype)
    files.write_bytes(config.to, content)
    print(
        f"largest difference of the logits {found:.1e}; {len(content) / 1e6:.1f} MB\n"
        f"file: {config.to}"
    )
    return 0


def exported(infer: Callable[[Array], Array], images: Array) -> bytes:
    """A function of images as a file, for any number of them."""
    (examples,) = export.symbolic_shape("examples")
    shape = jax.ShapeDtypeStruct((examples, *images.shape[1:]), jnp.float32)
    program = export.export(jax.jit(infer), platforms=_PLATFORMS)(shape)
    return bytes(program.serialize())


def check(
    content: bytes,
    network: Network,
    variables: Variables,
    images: Array,
    *,
    dtype: str = "float32",
) -> float:
    """Runs the file on all images and on one of them, beside the network.

    Args:
        content: of the file.
        network, variables: what it was made of.
        images: to compare on.
        dtype: type that the network computes in: the tolerance.

    Returns:
        The largest absolute difference of the logits.

    Raises:
        UserError: if they differ by more than rounding.
    """
    program = export.deserialize(bytearray(content))
    largest = 0.0
    for some in (images, images[:1]):
        want = np.asarray(jax.jit(network.infer)(variables, some))
        found = fold.difference(program.call(some), want)
        size = max(1.0, float(np.abs(want).max()))
        if not found <= fold.TOLERANCE[dtype] * size:
            raise UserError(
                "The exported network must give the outputs of the run, but differs "
                f"by {found:.1e} on {len(some)} images, with logits up to {size:.1e}; "
                "no file was written. Check the run with python -m experiments eval."
            )
        largest = max(largest, found)
    return largest
