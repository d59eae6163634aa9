"""A batch-normalized LSTM, as an example of statistics for each time step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxbn.core import checks, options, values
from jaxbn.core.records import of_steps
from jaxbn.core.types import BatchNormState
from jaxbn.variants.timestep import (
    SCALE,
    init_timestep_state,
    timestep_batch_norm,
    timestep_batch_norm_inference,
)


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
    """Orthogonal weights, zero biases, scales of 0.1.

    Args:
        key: a random key.
        inputs, hidden: sizes I and H.
        max_steps: how many steps have statistics of their own.
        dtype: type of the weights; the statistics are float32.

    Raises:
        TypeError: if `key` is no random key, a size no integer, or `dtype` no type of
            floating point numbers.
        ValueError: if a size is below 1.

    Example:
        >>> key = jax.random.key(0)
        >>> params, states = init_lstm(key, inputs=3, hidden=4, max_steps=5)
        >>> params.inputs.shape, states.cell.mean.shape
        ((3, 16), (5, 4))
    """
    first, second = _two_keys(key)
    hint = "It is a size of the cell."
    inputs = options.whole("inputs", inputs, hint=hint)
    hidden = options.whole("hidden", hidden, hint=hint)
    dtype = options.inexact("dtype", dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    orthogonal = jax.nn.initializers.orthogonal(dtype=wide)
    gates = 4 * hidden
    params = LstmParams(
        orthogonal(first, (hidden, gates)).astype(dtype),
        orthogonal(second, (inputs, gates)).astype(dtype),
        jnp.zeros(gates, dtype),
        jnp.full(gates, SCALE, dtype),
        jnp.full(gates, SCALE, dtype),
        jnp.full(hidden, SCALE, dtype),
        jnp.zeros(hidden, dtype),
    )
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

        f, i, o, g = BN(h W_h) + BN(x W_x) + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(BN(c'))

    Args:
        params, states: from `init_lstm`.
        x: shape (batch, steps, inputs).
        lengths: the length of each sequence, shape (batch,). Beyond it a sequence
            counts in no statistic and its output stays. Default: all steps.
        training: whether to normalize with the batch and update the states.
        others: of `jaxbn.batch_norm`, as `axis_name` or `momentum`, in training; of
            `jaxbn.batch_norm_inference` otherwise.

    Returns:
        The outputs h, shape (batch, steps, H), and the states. The type of h and of
        all arithmetic outside the normalizations is that of `x` and `params` together:
        float32 for bfloat16 `x` and float32 weights.

    Raises:
        TypeError: if `params`, `states` or `lengths` are of another type.
        ValueError: if shapes do not fit.

    Reference:
        Cooijmans et al., Recurrent batch normalization, 2016.
        https://arxiv.org/abs/1603.09025

    Example:
        >>> key = jax.random.key(0)
        >>> params, states = init_lstm(key, inputs=3, hidden=4, max_steps=5)
        >>> step = jax.jit(lstm, static_argnames="training")
        >>> step(params, states, jnp.ones((2, 5, 3)), training=True)[0].shape
        (2, 5, 4)
    """
    training = options.flag("training", training)
    x, params, states = _checked(x, params, states)
    dtype = jnp.result_type(x, *params)
    x, params = x.astype(dtype), LstmParams(*(p.astype(dtype) for p in params))
    batch, steps, _ = x.shape
    lengths = jnp.full(batch, steps) if lengths is None else _lengths(lengths, batch)

    def norm(values, states, scale, bias, t, alive):
        arrays = (values, states, scale, bias)
        if not training:
            return timestep_batch_norm_inference(*arrays, t=t, **others), states
        return timestep_batch_norm(*arrays, t=t, where=alive, **others)

    def step(carry, inputs):
        h, c, states = carry
        t, x = inputs
        alive = (t < lengths)[:, None]
        p = params
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
    zero = jnp.zeros((batch, params.cell_bias.shape[0]), dtype) + 0 * x[:, 0, :1]
    carry, outputs = lax.scan(
        step, (zero, zero, states), (jnp.arange(steps), jnp.moveaxis(x, 1, 0))
    )
    return jnp.moveaxis(outputs, 0, 1), carry[2]


def _two_keys(key: Any) -> Array:
    try:
        return jax.random.split(values.array("key", key))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`key` must be a random key, got {values.shown(key)}. Make one with "
            "`jax.random.key(0)`."
        ) from error


def _checked(x: Any, params: Any, states: Any) -> tuple[Array, LstmParams, LstmStates]:
    for name, given, kind in (
        ("params", params, LstmParams),
        ("states", states, LstmStates),
    ):
        if not isinstance(given, kind):
            raise TypeError(
                f"`{name}` must be {kind.__name__}, got {type(given).__name__}. Create "
                "them with `init_lstm`."
            )
    params = LstmParams(
        *(values.array(f"params.{k}", v) for k, v in params._asdict().items())
    )
    for name, value in params._asdict().items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"`params.{name}` must be floating point, got {value.dtype}. Create "
                "them with `init_lstm`."
            )
    x = checks.numbers("x", x, params.bias, of="params")
    inputs = params.inputs.shape[:1]
    if x.ndim != 3 or x.shape[2:] != inputs:
        raise ValueError(
            f"`x` must have shape (batch, steps, inputs) with {inputs} inputs, got "
            f"{x.shape}. Put the sequences on the first axis, the steps on the second."
        )
    sizes = {
        "hidden": (n := params.cell_bias.size, 4 * n),
        "inputs": (x.shape[2], 4 * n),
        "bias": (4 * n,),
        "hidden_scale": (4 * n,),
        "inputs_scale": (4 * n,),
        "cell_scale": (n,),
        "cell_bias": (n,),
    }
    for name, shape in sizes.items():
        if (got := getattr(params, name).shape) != shape:
            raise ValueError(
                f"`params.{name}` must have shape {shape}, got {got}. Create them with "
                "`init_lstm`."
            )
    found = (of_steps(f"states.{k}", v) for k, v in states._asdict().items())
    return x, params, LstmStates(*found)


def _lengths(lengths: Any, batch: int) -> Array:
    lengths = values.array("lengths", lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"`lengths` must be integers, got {lengths.dtype}. They count the steps."
        )
    if lengths.shape != (batch,):
        raise ValueError(
            f"`lengths` must have shape {(batch,)}, got {lengths.shape}. It is the "
            "length of each sequence."
        )
    return lengths
