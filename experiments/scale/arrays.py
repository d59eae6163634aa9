"""The arrays of a trained run, and files of them beside its checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors  # noqa: F401  missing when a command begins, not when it ends
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.common import checkpoint, files
from experiments.common.errors import UserError, writing
from experiments.scale.config import Devices, ScaleConfig, Session
from experiments.scale.network import Network, Variables, make_network
from experiments.scale.optimizer import make_optimizer
from experiments.scale.options import identity, stored
from experiments.scale.step import Step
from jaxbn.interop import read_safetensors, write_safetensors

_STATISTICS = "batch_stats.safetensors"
_MAKE = "Make new ones with python -m experiments recalibrate."


def load_run(
    out: Path, *, statistics: Path | None
) -> tuple[ScaleConfig, Network, Variables]:
    """Returns the options of the run in `out`, its network, and its newest variables.

    The network is for one device, whatever the run was trained on. No file is changed.

    Args:
        out: directory of the run.
        statistics: that of other running statistics, by `write_statistics`.

    Raises:
        UserError: if `out` holds no run with a whole checkpoint.
    """
    if not (out / "config.json").is_file():
        raise UserError(
            f"`--out` must hold a run, got '{out}'. Train one first: "
            "python -m experiments train --config NAME --out DIR."
        )
    config = stored(ScaleConfig(session=Session(out=out)))
    config = dataclasses.replace(config, devices=Devices())
    network = make_network(
        dataclasses.replace(config.model, bn_sync="global"),
        config.data,
        batch_size=config.optimizer.batch_size,
        data_devices=1,
        axis_name=None,
    )
    step = Step(network, make_optimizer(config.optimizer), 1)
    state = checkpoint.read_newest(identity(config), _on_one_device(step)).state
    batch_stats = state.batch_stats
    if statistics is not None:
        batch_stats = read_tree(statistics / _STATISTICS, like=batch_stats)
    return config, network, Variables(state.params, batch_stats)


def _on_one_device(step: Step):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(step.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )


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
