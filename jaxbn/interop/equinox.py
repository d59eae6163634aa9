"""Equinox: `eqx.nn.BatchNorm` and its State."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn.core.types import BatchNormState
from jaxbn.interop.layer import (
    Difference,
    Layer,
    Peer,
    compare,
    number_of_updates,
    running,
    vector,
)


def from_equinox(source: Any, state: Any, *, corrected: bool = False) -> Layer:
    """Reads a layer from Equinox.

    Equinox's "batch" mode divides out the initial values of the averages as if both
    were zero, but its variance starts at one: after n updates the variance it uses is
    too large by m^n / (1 - m^n), for momentum m. The layer has the same variance unless
    `corrected`. Its "ema" mode normalizes with running statistics in training too,
    which this library does not: such a layer is the same at evaluation only.

    Args:
        source: an `eqx.nn.BatchNorm`.
        state: the `eqx.nn.State` that belongs to it.
        corrected: if True, a layer in "batch" mode gets the average of the variances
            without the remains of the initial one.

    Returns:
        A Layer for whole batches with features on axis 1, as under Equinox's `vmap`.

    Example:
        >>> import equinox as eqx
        >>> norm = eqx.nn.BatchNorm
        >>> module, state = eqx.nn.make_with_state(norm)(2, "batch", mode="batch")
        >>> jaxbn.interop.from_equinox(module, state).momentum
        0.99
    """
    momentum = source.momentum
    if source.mode == "ema":
        fresh = bool(state.get(source.ema_first_time_index))
        mean, var = state.get(source.ema_state_index)
        if fresh:
            mean, var = jnp.zeros_like(mean), jnp.ones_like(var)
        statistics = running(mean, var, 0 if fresh else 1)
    else:
        count = int(state.get(source.batch_counter))
        mean, var = state.get(source.batch_state_index)
        unit = 1 - momentum**count if count else 1
        if corrected and count:
            var = var - momentum**count
        statistics = running(mean / unit, var / unit, count)
    affine = source.channelwise_affine
    return Layer(
        statistics,
        vector(source.weight) if affine else None,
        vector(source.bias) if affine else None,
        momentum=momentum,
        epsilon=source.eps,
        axis=1,
        debias=source.mode == "batch",
    )


def to_equinox(layer: Layer, target: Any, state: Any) -> tuple[Any, Any]:
    """Writes a layer into an Equinox layer of the same size.

    Evaluation is then the same there. Momentum and epsilon are those of `target`.

    Args:
        layer: the layer.
        target: an `eqx.nn.BatchNorm`; needs `channelwise_affine` if there is a scale or
            a bias.
        state: the `eqx.nn.State` that belongs to it.

    Returns:
        The new Equinox layer and its state.

    Raises:
        ValueError: if `target` has no place for scale and bias.

    Example:
        >>> import equinox as eqx
        >>> norm = eqx.nn.BatchNorm
        >>> module, state = eqx.nn.make_with_state(norm)(2, "batch", mode="batch")
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2), jnp.array([3.0, 3.0]))
        >>> module, state = jaxbn.interop.to_equinox(layer, module, state)
        >>> module.weight
        Array([3., 3.], dtype=float32)
    """
    import equinox as eqx

    mean, var, _ = layer.state
    if not target.channelwise_affine and (layer.scale, layer.bias) != (None, None):
        raise ValueError(
            "`target` must have `channelwise_affine`, got False for a layer with scale "
            "or bias. Create it with `channelwise_affine=True`."
        )
    if target.mode == "ema":
        state = state.set(target.ema_first_time_index, jnp.array(False))
        state = state.set(target.ema_state_index, (mean, var))
    else:
        count = number_of_updates(layer.state)
        unit = 1 - target.momentum**count if count else 1
        state = state.set(target.batch_counter, jnp.array(count))
        state = state.set(target.batch_state_index, (mean * unit, var * unit))
    if target.channelwise_affine:
        ones = jnp.ones_like(var)
        scale = ones if layer.scale is None else layer.scale
        bias = 0 * ones if layer.bias is None else layer.bias
        target = eqx.tree_at(lambda t: (t.weight, t.bias), target, (scale, bias))
    return target, state


def check_equinox(source: Any, state: Any, batches: Iterable[Any]) -> Difference:
    """Trains an Equinox layer and the layer read from it side by side.

    Args:
        source: an `eqx.nn.BatchNorm`.
        state: the `eqx.nn.State` that belongs to it.
        batches: NumPy arrays with features on axis 1.

    Returns:
        The largest differences.

    Example:
        >>> import equinox as eqx
        >>> norm = eqx.nn.BatchNorm
        >>> module, state = eqx.nn.make_with_state(norm)(2, "batch", mode="batch")
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_equinox(module, state, [x]).train < 1e-5
        True
    """
    held, axis_name = state, source.axis_name

    def train(x):
        nonlocal held
        y, held = jax.vmap(
            lambda row, s: source(row, s, inference=False),
            in_axes=(0, None),
            out_axes=(0, None),
            axis_name=axis_name,
        )(jnp.asarray(x), held)
        return y

    def evaluate(x):
        def one(row):
            return source(row, held, inference=True)[0]

        return jax.vmap(one, axis_name=axis_name)(jnp.asarray(x))

    def statistics() -> tuple[Any, Any]:
        now: BatchNormState = from_equinox(source, held).state
        return now.mean, now.var

    peer = Peer(train, evaluate, statistics)
    return compare(from_equinox(source, state), peer, batches)
