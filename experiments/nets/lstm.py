"""A batch-normalized LSTM: statistics for each time step, and masks for lengths.

    f, i, o, g = BN(h W_h) + BN(x W_x) + b
    c' = sigmoid(f) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(BN(c'))

Reference: Cooijmans et al., Recurrent batch normalization, 2016.
https://arxiv.org/abs/1603.09025
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxbn import BatchNormState
from jaxbn.variants import (
    init_timestep_state,
    timestep_batch_norm,
    timestep_batch_norm_inference,
)

SCALE = 0.1
"""Initial scale of the paper: with 1, tanh and sigmoid saturate at once."""


class LstmParams(NamedTuple):
    """Weights of the cell, for I inputs and H hidden units.

    Attributes:
        hidden: (H, 4 H), from the last output to the gates.
        inputs: (I, 4 H), from the input to the gates.
        bias: (4 H,), of the gates: forget, input, output, candidate.
        hidden_scale, inputs_scale: (4 H,).
        cell_scale, cell_bias: (H,).
    """

    hidden: Array
    inputs: Array
    bias: Array
    hidden_scale: Array
    inputs_scale: Array
    cell_scale: Array
    cell_bias: Array


class LstmStates(NamedTuple):
    """Running statistics of the three normalizations, for each time step."""

    hidden: BatchNormState
    inputs: BatchNormState
    cell: BatchNormState


def init_lstm(
    key: Array,
    *,
    inputs: int,
    hidden: int,
    max_steps: int,
    dtype: DTypeLike = jnp.float32,
) -> tuple[LstmParams, LstmStates]:
    """Initializes orthogonal weights, zero biases and scales of 0.1.

    Args:
        key: a random key.
        inputs, hidden: sizes I and H.
        max_steps: number of steps that have statistics of their own.
        dtype: type of the weights; the statistics are float32.
    """
    first, second = jax.random.split(key)
    wide = jnp.promote_types(dtype, jnp.float32)
    orthogonal = jax.nn.initializers.orthogonal(dtype=wide)
    gates = 4 * hidden
    params = LstmParams(
        orthogonal(first, (hidden, gates)),
        orthogonal(second, (inputs, gates)),
        jnp.zeros(gates),
        jnp.full(gates, SCALE),
        jnp.full(gates, SCALE),
        jnp.full(hidden, SCALE),
        jnp.zeros(hidden),
    )
    params = LstmParams(*(p.astype(dtype) for p in params))
    sizes = (gates, gates, hidden)
    return params, LstmStates(*(init_timestep_state(max_steps, n) for n in sizes))


def lstm(
    params: LstmParams,
    states: LstmStates,
    x: Array,
    *,
    lengths: Array | None = None,
    training: bool,
    **others: Any,
) -> tuple[Array, LstmStates]:
    """Runs the cell over a batch of sequences.

    Args:
        params, states: from `init_lstm`.
        x: shape (batch, steps, inputs).
        lengths: the length of each sequence, shape (batch,). Beyond it a sequence
            counts in no statistic and its output stays. Default: all steps.
        training: whether to normalize with the batch and update the states.
        others: of `jaxbn.batch_norm`, as `axis_name` or `momentum`, in training; of
            `jaxbn.batch_norm_inference` otherwise.

    Returns:
        The outputs h, shape (batch, steps, H), in the type of `x` and `params`
        together, and the states.
    """
    dtype = jnp.result_type(x, *params)
    x, p = x.astype(dtype), LstmParams(*(p.astype(dtype) for p in params))
    batch, steps, _ = x.shape
    lengths = jnp.full(batch, steps) if lengths is None else lengths

    def norm(values, states, scale, bias, t, alive):
        arrays = (values, states, scale, bias)
        if not training:
            return timestep_batch_norm_inference(*arrays, t=t, **others), states
        return timestep_batch_norm(*arrays, t=t, where=alive, **others)

    def step(carry, inputs):
        h, c, states = carry
        t, x = inputs
        alive = (t < lengths)[:, None]
        from_h, hidden = norm(
            h @ p.hidden, states.hidden, p.hidden_scale, None, t, alive
        )
        from_x, entry = norm(
            x @ p.inputs, states.inputs, p.inputs_scale, None, t, alive
        )
        f, i, o, g = jnp.split(from_h + from_x + p.bias, 4, axis=-1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        shown, cell = norm(new_c, states.cell, p.cell_scale, p.cell_bias, t, alive)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(shown)
        h, c = jnp.where(alive, new_h, h), jnp.where(alive, new_c, c)
        return (h, c, LstmStates(hidden, entry, cell)), h

    # Zeros that vary over the mesh as `x` does.
    zero = jnp.zeros((batch, p.cell_bias.shape[0]), dtype) + 0 * x[:, 0, :1]
    carry, outputs = lax.scan(
        step, (zero, zero, states), (jnp.arange(steps), jnp.moveaxis(x, 1, 0))
    )
    return jnp.moveaxis(outputs, 0, 1), carry[2]
