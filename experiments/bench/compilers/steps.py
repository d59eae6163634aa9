"""The whole training step of ResNet-50 as `python -m experiments train` runs it.

SGD with momentum, the step's own checks included; the state is donated.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxbn.linen
from experiments.bench.compilers import devices
from experiments.bench.compilers.programs import Program
from experiments.nets import apart, resnet
from experiments.scale import config
from experiments.scale.layout import make_layout
from experiments.scale.network import Network, of_linen
from experiments.scale.optimizer import make_optimizer
from experiments.scale.step import Step

IMAGE, _CLASSES = (224, 224, 3), 1000


def without(*, activation: str | None, **options: Any) -> nn.Module:
    """Returns the sum and the activation of a layer that does not normalize."""
    return apart.Apart(None, activation)


def separate(*, activation: str | None, scale_init: Any, **options: Any) -> nn.Module:
    """Returns a layer of jaxbn with the sum and the activation after it."""
    norm = partial(jaxbn.linen.BatchNorm, **options)
    return apart.Apart(norm, activation, scale_init)


class Way(NamedTuple):
    """One way to normalize.

    Attributes:
        norm: for `resnet.Layers`.
        activation: likewise.
        policy: of `jax.checkpoint` around the network.
    """

    norm: Any
    activation: str = "relu"
    policy: Any = None


# As the network of a configuration has it: the average starts without initial values.
_JAXBN = partial(jaxbn.linen.BatchNorm, debias=True)
_LEAKY = "leaky_relu"
WAYS = {
    "none": Way(without),
    "flax": Way(apart.linen_flax_norm),
    "flax-two-pass": Way(partial(apart.linen_flax_norm, use_fast_variance=False)),
    "jaxbn": Way(_JAXBN),
    "jaxbn-apart": Way(partial(separate, debias=True)),
    "jaxbn-recompute": Way(
        partial(_JAXBN, save="recompute"), policy=jaxbn.recompute_policy
    ),
    "none-leaky": Way(without, _LEAKY),
    "flax-leaky": Way(apart.linen_flax_norm, _LEAKY),
    "jaxbn-leaky": Way(_JAXBN, _LEAKY),
    "jaxbn-output": Way(partial(_JAXBN, save="output"), _LEAKY),
}
"""`jaxbn-output` has leaky ReLU, which has an inverse, in place of ReLU."""


def lower(program: Program) -> jax.stages.Lowered:
    """Returns the program, to be compiled."""
    chip = devices.CHIPS[program.chip]
    found = devices.devices(chip, program.devices)
    layout = make_layout(config.Devices(program.parallel), found=found)
    rows = program.shape[0] * layout.data_devices
    network = network_of(WAYS[program.norm], program.dtype, layout.axis_name)
    optimizer = make_optimizer(config.Optimizer(batch_size=rows))
    step = Step(network, optimizer, rows, axis_name=layout.axis_name)
    state = layout.shapes(step.init)
    batch = layout.batch_shapes(rows, IMAGE, program.dtype)
    return layout.spread(step, state).lower(state, batch)


def network_of(way: Way, dtype: str, axis_name: str | None = None) -> Network:
    """Returns a ResNet-50 that normalizes in one way."""
    options = {"momentum": 0.9, "dtype": jnp.dtype(dtype)}
    norm = partial(way.norm, axis_name=axis_name, **options)
    layers = resnet.Layers(
        norm, jnp.dtype(dtype), way.activation, nn.initializers.zeros
    )
    network = of_linen(resnet.LinenResNet(50, 3, _CLASSES, layers), IMAGE)
    if way.policy is None:
        return network
    return network._replace(train=jax.checkpoint(network.train, policy=way.policy))
