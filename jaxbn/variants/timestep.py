"""Recurrent batch normalization: statistics for each time step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxbn.core import options, records, values
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.normalize import batch_norm_inference
from jaxbn.core.state import init_state
from jaxbn.core.types import BatchNormState

SCALE = 0.1
"""Initial scale of the paper: with 1, tanh and sigmoid saturate at once."""
STEPS = "Use the length of the longest sequence in training."
"""Hint in messages about a number of steps."""


def init_timestep_state(
    max_steps: int, num_features: int | Sequence[int]
) -> BatchNormState:
    """Running statistics for `max_steps` steps: leaves of shape (max_steps, C).

    Args:
        max_steps: how many steps have statistics of their own, >= 1.
        num_features: number of channels C, or the sizes of several feature axes.

    Raises:
        ValueError: if `max_steps` is below 1.

    Example:
        >>> init_timestep_state(10, 3).mean.shape
        (10, 3)
    """
    steps = options.whole("max_steps", max_steps, hint=STEPS)
    return init_state((steps, *options.sizes("num_features", num_features)))


def timestep_batch_norm(
    x: Array,
    states: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    t: int | Array,
    **others: Any,
) -> tuple[Array, BatchNormState]:
    """Normalizes the activations of time step `t` with the statistics of that step.

    Steps from the last one on share its statistics: t >= T uses T - 1 of T. In
    `lax.scan` carry `states` and count `t`. For sequences of different length pass
    `where`, true where the sequence goes on: a step nobody reaches changes nothing.

    Args:
        x: the batch at one step.
        states: from `init_timestep_state`, leaves of shape (T, C).
        scale, bias: shape (C,), shared by all steps; start `scale` at 0.1.
        t: the step, >= 0; may be traced.
        others: keyword arguments of `jaxbn.batch_norm`.

    Returns:
        y, with the shape and type of `x`, and the states with that of `t` updated.

    Raises:
        ValueError: if `states` have no leading axis, or as in `jaxbn.batch_norm`.

    Reference:
        Cooijmans et al., Recurrent batch normalization, 2016.
        https://arxiv.org/abs/1603.09025

    Example:
        >>> x, states = jnp.array([[1.0], [3.0]]), init_timestep_state(2, 1)
        >>> _, states = timestep_batch_norm(x, states, t=1)
        >>> states.mean.ravel()
        Array([0., 2.], dtype=float32)
    """
    states = records.of_steps("states", states)
    row = _row(states, t)
    y, new = batch_norm(x, _at(states, row), scale, bias, **others)

    def write(all_steps, one):
        return lax.dynamic_update_index_in_dim(all_steps, one, row, 0)

    return y, jax.tree.map(write, states, new)


def timestep_batch_norm_inference(
    x: Array,
    states: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    t: int | Array,
    **others: Any,
) -> Array:
    """Normalizes with the running statistics of time step `t`.

    Args:
        x, states, scale, bias, t: as in `timestep_batch_norm`.
        others: keyword arguments of `jaxbn.batch_norm_inference`.

    Returns:
        y, with the shape and type of `x`.

    Example:
        >>> states = init_timestep_state(2, 1)._replace(mean=jnp.array([[0.0], [3.0]]))
        >>> timestep_batch_norm_inference(jnp.array([[5.0]]), states, t=1).round(3)
        Array([[2.]], dtype=float32)
    """
    states = records.of_steps("states", states)
    return batch_norm_inference(x, _at(states, _row(states, t)), scale, bias, **others)


def _row(states: BatchNormState, t: int | Array) -> Array:
    number = values.array("t", t)
    if number.shape or not jnp.issubdtype(number.dtype, jnp.integer):
        raise TypeError(
            f"`t` must be an integer, got {values.shown(t)}. It numbers the steps "
            "from 0."
        )
    if values.wrong(t, lambda t: t >= 0) is not None:
        raise ValueError(f"`t` must not be negative, got {t}. The first step is 0.")
    return jnp.clip(number.astype(jnp.int32), 0, states.mean.shape[0] - 1)


def _at(states: BatchNormState, row: Array) -> BatchNormState:
    return jax.tree.map(
        lambda v: lax.dynamic_index_in_dim(v, row, keepdims=False), states
    )
