"""Equinox: `eqx.nn.BatchNorm` and its State."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxbn.core import options
from jaxbn.core.types import BatchNormState
from jaxbn.core.values import shown
from jaxbn.interop import arguments
from jaxbn.interop.layer import Layer, checked, read
from jaxbn.interop.peers import Difference, Peer, compare
from jaxbn.interop.targets import arrays_for, check_settings, number_of_updates


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

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if `state` belongs to another layer, or is traced or abstract, or
            has values that cannot be those of a layer.

    Example:
        >>> import equinox as eqx
        >>> norm = eqx.nn.BatchNorm
        >>> module, state = eqx.nn.make_with_state(norm)(2, "batch", mode="batch")
        >>> jaxbn.interop.from_equinox(module, state).momentum
        0.99
    """
    _check_layer("source", source, state)
    options.flag("corrected", corrected)
    momentum = arguments.share("source.momentum", source.momentum, "It weighs the old.")
    if source.mode == "ema":
        fresh = bool(_stored(state, source.ema_first_time_index)[0])
        mean, var = _stored(state, source.ema_state_index)
        if fresh:
            mean, var = jnp.zeros_like(mean), jnp.ones_like(var)
        count = 0 if fresh else 1
    else:
        count = int(_stored(state, source.batch_counter)[0])
        mean, var = _stored(state, source.batch_state_index)
        unit = 1 - momentum**count if count else 1
        if corrected and count:  # the difference may round to less than nothing
            var = jnp.maximum(var - momentum**count, 0)
        mean, var = mean / unit, var / unit
    return read(
        {
            "The mean in `state`": mean,
            "The variance in `state`": var,
            "The counter in `state`": count,
            "`source.weight`": source.weight,
            "`source.bias`": source.bias,
        },
        momentum=momentum,
        epsilon=source.eps,
        axis=1,
        debias=source.mode == "batch",
    )


def to_equinox(layer: Layer, target: Any, state: Any) -> tuple[Any, Any]:
    """Writes a layer into an Equinox layer of the same size.

    Args:
        layer: the layer, with the momentum and epsilon of `target` and what all layers
            of Equinox have: `axis=1`, `unbiased=False`, and `debias` in "batch" mode
            only.
        target: an `eqx.nn.BatchNorm`, with `channelwise_affine` if there are a scale
            and a bias. Its arrays keep their types.
        state: the `eqx.nn.State` that belongs to it.

    Returns:
        The new Equinox layer and its state.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if `target` has other settings, another size, or no place for scale
            and bias; if `state` belongs to another layer, or is no longer valid; if
            `layer` has no values because it is traced.

    Example:
        >>> import equinox as eqx
        >>> norm = eqx.nn.BatchNorm
        >>> module, state = eqx.nn.make_with_state(norm)(2, "batch", mode="batch")
        >>> state_here = jaxbn.init_state(2)
        >>> layer = jaxbn.interop.Layer(
        ...     state_here, jnp.array([3.0, 3.0]), jnp.zeros(2), axis=1, debias=True
        ... )
        >>> module, state = jaxbn.interop.to_equinox(layer, module, state)
        >>> module.weight
        Array([3., 3.], dtype=float32)
    """
    layer = checked(layer)
    _check_layer("target", target, state)
    batch = target.mode == "batch"
    check_settings(
        layer,
        "in `target`",
        momentum=target.momentum,
        epsilon=target.eps,
        axis=1,
        unbiased=False,
        debias=batch,
    )
    slot = target.batch_state_index if batch else target.ema_state_index
    mean, var = _stored(state, slot)
    found = {"mean": mean, "var": var, "scale": target.weight, "bias": target.bias}
    found = {name: value for name, value in found.items() if value is not None}
    count = number_of_updates(layer, "Equinox")
    if batch:
        found["count"] = layer.state.count  # which fits, as one number
    new = arrays_for(layer, found, "`target`")
    mean, var = new["mean"], new["var"]
    if batch:
        unit = 1 - target.momentum**count if count else 1
        state = state.set(target.batch_counter, jnp.array(count))
        state = state.set(slot, (mean * unit, var * unit))
    else:
        state = state.set(target.ema_first_time_index, jnp.array(False))
        state = state.set(slot, (mean, var))
    if target.channelwise_affine:
        import equinox as eqx

        affine = new["scale"], new["bias"]
        target = eqx.tree_at(lambda t: (t.weight, t.bias), target, affine)
    return target, state


def check_equinox(source: Any, state: Any, batches: Iterable[Any]) -> Difference:
    """Trains an Equinox layer and the layer read from it side by side.

    Args:
        source: an `eqx.nn.BatchNorm`.
        state: the `eqx.nn.State` that belongs to it.
        batches: NumPy arrays with features on axis 1.

    Returns:
        The largest differences.

    Raises:
        TypeError, ValueError: as `from_equinox` and `compare`.

    Example:
        >>> import equinox as eqx
        >>> norm = eqx.nn.BatchNorm
        >>> module, state = eqx.nn.make_with_state(norm)(2, "batch", mode="batch")
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_equinox(module, state, [x]).train < 1e-5
        True
    """
    layer = from_equinox(source, state)
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
    return compare(layer, peer, batches)


def _check_layer(name: str, value: Any, state: Any) -> None:
    if not arguments.is_a(value, "BatchNorm", "equinox"):
        raise TypeError(
            f"`{name}` must be an `eqx.nn.BatchNorm`, got {shown(value)}. "
            "Create both with `eqx.nn.make_with_state(eqx.nn.BatchNorm)(...)`."
        )
    if not arguments.is_a(state, "State", "equinox"):
        raise TypeError(
            f"`state` must be an `eqx.nn.State`, got {shown(state)}. It is "
            "what `eqx.nn.make_with_state` returned, or the layer when called last."
        )


def _stored(state: Any, index: Any) -> tuple[Any, ...]:
    """The arrays at an index of a state, as a tuple."""
    try:
        found = state.get(index)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"`state` must be the latest one of the layer, got {error}. Pass what the "
            "model returned last, or `eqx.nn.make_with_state`."
        ) from error
    arrays = found if isinstance(found, tuple) else (found,)
    values = [arguments.array("An array in `state`", v) for v in arrays]
    if any(isinstance(value, Tracer) for value in values):
        raise ValueError(
            "`state` must have values, got traced arrays. Convert it outside of "
            "`jax.jit` and other transformations."
        )
    return tuple(values)
