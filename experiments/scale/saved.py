"""A trained run, read to be used; nothing of it is changed."""

import dataclasses
from pathlib import Path

import jax

from experiments.common import checkpoint
from experiments.common.errors import UserError
from experiments.scale.config import Devices, ScaleConfig, Session
from experiments.scale.identity import identity
from experiments.scale.network import Network, Variables, make_network
from experiments.scale.optimizer import make_optimizer
from experiments.scale.options import stored
from experiments.scale.step import Step


def load_run(out: Path) -> tuple[ScaleConfig, Network, Variables]:
    """Returns the options of the run in `out`, its network, and its newest variables.

    The network is for one device, whatever the run was trained on.

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
    return config, network, Variables(state.params, state.batch_stats)


def _on_one_device(step: Step):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(step.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )
