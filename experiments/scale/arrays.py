"""Files with the arrays of a network, beside the checkpoints of a run."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors  # noqa: F401  missing when a command begins, not when it ends
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.common import files
from experiments.common.errors import UserError, writing
from experiments.scale import saved
from experiments.scale.config import ScaleConfig
from experiments.scale.network import Network, Variables
from jaxbn.interop import read_safetensors, write_safetensors

_STATISTICS = "batch_stats.safetensors"
_MAKE = "Make new ones with python -m experiments recalibrate."


def load_run(
    out: Path, *, statistics: Path | None
) -> tuple[ScaleConfig, Network, Variables]:
    """As `saved.load_run`, with the running statistics in `statistics` if given."""
    begun, network, variables = saved.load_run(out)
    if statistics is not None:
        found = read_tree(statistics / _STATISTICS, like=variables.batch_stats)
        variables = variables._replace(batch_stats=found)
    return begun, network, variables


def write_statistics(folder: Path, batch_stats: Any, about: dict) -> None:
    """Writes running statistics into a directory, for `load_run`."""
    write_tree(folder / _STATISTICS, batch_stats)
    files.write_json(folder / "about.json", about)


def new_folder(path: Path, *, option: str) -> Path:
    """Makes a directory for results.

    Raises:
        UserError: if it is there and not empty, or cannot be written.
    """
    if _in_use(path):
        raise UserError(
            f"`{option}` must be a new or an empty directory, got '{path}'. Pass "
            "another one."
        )
    files.make_folder(path, option=option)
    return path


def _in_use(path: Path) -> bool:
    try:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError:  # What cannot be looked into cannot be written either.
        return False


def write_tree(path: Path, tree: Any) -> None:
    """Writes nested dictionaries of arrays as a safetensors file, all or nothing."""
    with writing(path.parent, option="--to"), files.replacing(path) as new:
        write_safetensors(
            new, {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()}
        )


def read_tree(path: Path, *, like: Any) -> Any:
    """Reads a file of `write_tree` into the structure of `like`.

    Raises:
        UserError: if the file is not there, or holds other arrays.
    """
    try:
        found = read_safetensors(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' must be a file with running statistics: {error} {_MAKE}"
        ) from error
    wanted = flatten_dict(like, sep="/")
    if found.keys() != wanted.keys():
        raise UserError(
            f"'{path}' must have the statistics of this network, but has others. "
            f"{_MAKE}"
        )
    for name, leaf in wanted.items():
        _check(path, name, found[name], leaf)
    arrays = {name: jnp.asarray(found[name]) for name in wanted}
    return unflatten_dict(arrays, sep="/")


def _check(path: Path, name: str, found: np.ndarray, like: Any) -> None:
    kind, wanted = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in (found, like))
    if kind != wanted:
        raise UserError(f"'{path}' must have {name} as {wanted}, got {kind}. {_MAKE}")
    if not np.isfinite(found).all():
        raise UserError(f"'{path}' must have finite values of {name}. {_MAKE}")
    # Variances and counts; a mean may be anything.
    if not name.endswith("mean") and found.min(initial=0) < 0:
        raise UserError(
            f"'{path}' must have no negative {name}, got {found.min():.3g}. {_MAKE}"
        )
