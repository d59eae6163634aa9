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
from experiments.nets.apart import finished

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
    function = layer if program.kind == "forward" else _both(layer)
    if shared:
        specs = tuple(a.sharding.spec for a in inputs)
        function = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(P(), P(_AXIS), *specs),
            out_specs=(P(_AXIS), P(), specs),
        )
    given = inputs if program.kind == "forward" else (x, *inputs)
    return jax.jit(function).lower(state, *given)


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
    if program.norm == "haiku":
        return _haiku_model(program, None)[1]
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


def _finish(program: Program, y: jax.Array, residual: jax.Array | None) -> jax.Array:
    return finished(y, None if program.activation == "none" else "relu", residual)


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
        return _finish(program, y, residual), new["batch_stats"]

    return layer


def _haiku_model(program: Program, axis_name: str | None) -> tuple[Any, Any]:
    """The pure functions of haiku's layer, and the shapes of its state."""
    import haiku as hk

    def normalize(x, scale, bias):
        layer = hk.BatchNorm(False, False, 0.99, cross_replica_axis=axis_name)
        return layer(x, True, scale=scale, offset=bias)

    model = hk.without_apply_rng(hk.transform_with_state(normalize))
    example = jax.ShapeDtypeStruct(program.shape, program.dtype)
    vector = jax.ShapeDtypeStruct(program.shape[-1:], jnp.float32)
    return model, jax.eval_shape(
        lambda *given: model.init(jax.random.key(0), *given)[1], example, vector, vector
    )


def _haiku(program: Program, axis_name: str | None) -> Callable:
    model, _ = _haiku_model(program, axis_name)

    def layer(state, x, scale, bias, residual=None):
        y, new = model.apply({}, state, x, scale, bias)
        return _finish(program, y.astype(x.dtype), residual), new

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
    "haiku": _haiku,
}
"""Makes `layer(state, x, scale, bias, residual=None) -> (y, new state)`."""
