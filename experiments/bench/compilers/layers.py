"""One layer, forward and backward, as it is in the middle of a network.

The cotangent depends on y, by a barrier that the compiler cannot see through: without
it the backward pass could begin before the forward pass is done.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
from experiments.bench.compilers import devices
from experiments.bench.compilers.programs import Program

_AXIS = "d"


def lower(program: Program) -> jax.stages.Lowered:
    """Returns the program, to be compiled."""
    chip, count = devices.CHIPS[program.chip], program.devices
    mesh = Mesh(np.array(devices.devices(chip, count)), (_AXIS,))
    shared = program.parallel == "shard_map"
    layer = LAYERS[program.norm](program, _AXIS if shared else None)
    shape, channels = (program.shape[0] * count, *program.shape[1:]), program.shape[-1:]

    def array(shape, dtype, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    x = array(shape, program.dtype, P(_AXIS))
    vector = array(channels, jnp.float32, P())
    state = jax.tree.map(lambda a: array(a.shape, a.dtype, P()), _state(program))
    inputs = (x, vector, vector, *([x] if program.activation == "add+relu" else []))
    function = _both(layer)
    if shared:
        specs = tuple(a.sharding.spec for a in inputs)
        function = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(P(), P(_AXIS), *specs),
            out_specs=(P(_AXIS), P(), specs),
        )
    return jax.jit(function).lower(state, x, *inputs)


def _both(layer: Callable) -> Callable:
    """y, the new running statistics, and the gradients."""

    def function(state, dy, *inputs):
        y, pull, new = jax.vjp(lambda *i: layer(state, *i), *inputs, has_aux=True)
        y, dy = lax.optimization_barrier((y, dy))
        return y, new, pull(dy)

    return function


def _state(program: Program) -> Any:
    made = jax.eval_shape(lambda: jaxbn.init_state(program.shape[-1]))
    if program.uses_jaxbn:
        return made
    return {"mean": made.mean, "var": made.var}


def _jaxbn(program: Program, axis_name: str | None, **options: Any) -> Callable:
    activation = None if program.activation == "none" else "relu"

    def layer(state, x, scale, bias, residual=None):
        return jaxbn.batch_norm(
            x,
            state,
            scale,
            bias,
            axis_name=axis_name,
            activation=activation,
            residual=residual,
            **options,
        )

    return layer


def _flax(program: Program, axis_name: str | None, **options: Any) -> Callable:
    module = nn.BatchNorm(
        use_running_average=False,
        axis_name=axis_name,
        dtype=jnp.dtype(program.dtype),
        **options,
    )

    def layer(state, x, scale, bias, residual=None):
        given = {"params": {"scale": scale, "bias": bias}, "batch_stats": state}
        y, new = module.apply(given, x, mutable="batch_stats")
        y = y if residual is None else y + residual
        y = y if program.activation == "none" else nn.relu(y)
        return y, new["batch_stats"]

    return layer


LAYERS: dict[str, Callable[[Program, str | None], Callable]] = {
    "jaxbn": _jaxbn,
    "jaxbn-output": lambda program, axis_name: _jaxbn(
        program, axis_name, save="output"
    ),
    "flax": _flax,
    "flax-two-pass": lambda program, axis_name: _flax(
        program, axis_name, use_fast_variance=False
    ),
}
"""Makes `layer(state, x, scale, bias, residual=None) -> (y, new state)`."""
