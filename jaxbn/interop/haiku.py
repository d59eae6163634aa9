"""Haiku: parameters and state of `hk.BatchNorm`."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.interop.layer import (
    Difference,
    Layer,
    Peer,
    compare,
    number_of_updates,
    running,
    vector,
)

Tree = Mapping[str, Mapping[str, Any]]


def from_haiku(
    params: Tree,
    state: Tree,
    *,
    decay_rate: float,
    name: str = "batch_norm",
    epsilon: float = 1e-5,
    axis: int = -1,
) -> Layer:
    """Reads a layer from the trees of `hk.transform_with_state`.

    Haiku's averages have no bias towards their start; it stores the biased variance.

    Args:
        params: parameters by module; a layer without any may be missing.
        state: state by module, with "NAME/~/mean_ema" and "NAME/~/var_ema".
        decay_rate: of the module; the weight of the old value.
        name: the full name of the module, as "res_net/batch_norm".
        epsilon: `eps` of the module.
        axis: -1 for `data_format="channels_last"`, 1 for "channels_first".

    Returns:
        A Layer that goes on training as the module would.

    Raises:
        ValueError: if there is no such module.

    Example:
        >>> import haiku as hk
        >>> def norm(x):
        ...     return hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        >>> module = hk.transform_with_state(norm)
        >>> params, state = module.init(jax.random.key(0), jnp.ones((8, 2)))
        >>> jaxbn.interop.from_haiku(params, state, decay_rate=0.9).scale
        Array([1., 1.], dtype=float32)
    """
    key = f"{name}/~/mean_ema"
    if key not in state:
        raise ValueError(
            f"`state` must contain {key!r}, got {sorted(state)!r}. Pass the full name "
            "of the module as `name`."
        )
    mean, var = state[key], state[f"{name}/~/var_ema"]
    own = params.get(name, {})
    return Layer(
        running(mean["average"], var["average"], jnp.maximum(mean["counter"], 0)),
        vector(own.get("scale")),
        vector(own.get("offset")),
        momentum=decay_rate,
        epsilon=epsilon,
        axis=axis,
        debias=True,
    )


def to_haiku(
    layer: Layer, *, rank: int, name: str = "batch_norm"
) -> tuple[dict[str, dict[str, Array]], dict[str, dict[str, Array]]]:
    """Writes a layer as entries of Haiku's trees.

    Args:
        layer: the layer, with a momentum that is a number.
        rank: the rank of the inputs: Haiku keeps all their axes.
        name: the full name of the module.

    Returns:
        The entries for parameters and for state.

    Raises:
        ValueError: if `layer.momentum` is None: Haiku has no cumulative average.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2), jnp.ones(2))
        >>> params, _ = jaxbn.interop.to_haiku(layer, rank=4)
        >>> params["batch_norm"]["scale"].shape
        (1, 1, 1, 2)
    """
    if layer.momentum is None:
        raise ValueError(
            "`layer.momentum` must be a number, got None. Haiku has no cumulative "
            "average; choose a momentum with `layer._replace`."
        )
    shape = [1] * rank
    shape[layer.axis] = -1
    count = number_of_updates(layer.state)
    unit = 1 - layer.momentum**count

    def average(value):
        value = value.reshape(shape)
        counter = jnp.asarray(count, jnp.int32)
        return {"average": value, "hidden": value * unit, "counter": counter}

    pairs = {"scale": layer.scale, "offset": layer.bias}
    own = {k: v.reshape(shape) for k, v in pairs.items() if v is not None}
    state = {
        f"{name}/~/mean_ema": average(layer.state.mean),
        f"{name}/~/var_ema": average(layer.state.var),
    }
    return ({name: own} if own else {}), state


def check_haiku(
    params: Tree,
    state: Tree,
    batches: Iterable[Any],
    *,
    decay_rate: float,
    epsilon: float = 1e-5,
    axis: int = -1,
) -> Difference:
    """Trains `hk.BatchNorm` and the layer read from it side by side.

    Args:
        params: of one module, whose name is "batch_norm".
        state: of the same module.
        batches: NumPy arrays.
        decay_rate, epsilon, axis: as in `from_haiku`.

    Returns:
        The largest differences.

    Example:
        >>> import haiku as hk
        >>> def norm(x):
        ...     return hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        >>> module = hk.transform_with_state(norm)
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> params, state = module.init(jax.random.key(0), x)
        >>> got = jaxbn.interop.check_haiku(params, state, [x], decay_rate=0.9)
        >>> got.train < 1e-5
        True
    """
    import haiku as hk

    options = {"decay_rate": decay_rate, "epsilon": epsilon, "axis": axis}
    layer = from_haiku(params, state, **options)

    def forward(x, *, training):
        norm = hk.BatchNorm(
            layer.scale is not None,
            layer.bias is not None,
            decay_rate,
            epsilon,
            data_format="channels_last" if axis == -1 else "channels_first",
        )
        return norm(x, training)

    module = hk.transform_with_state(forward)
    apply = jax.jit(module.apply, static_argnames="training")
    held = state

    def train(x):
        nonlocal held
        y, held = apply(params, held, None, x, training=True)
        return y

    def statistics():
        averages = (held[f"batch_norm/~/{k}_ema"]["average"] for k in ("mean", "var"))
        mean, var = (np.ravel(v) for v in averages)
        return mean, var

    def evaluate(x):
        return apply(params, held, None, x, training=False)[0]

    return compare(layer, Peer(train, evaluate, statistics), batches)
