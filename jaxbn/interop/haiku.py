"""Haiku: parameters and state of `hk.BatchNorm`."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.core import options
from jaxbn.core.values import shown
from jaxbn.interop import arguments
from jaxbn.interop.layer import Layer, checked, read
from jaxbn.interop.peers import Difference, Peer, compare
from jaxbn.interop.targets import check_average, check_settings, number_of_updates

Tree = Mapping[str, Mapping[str, Any]]

_OLD = "It is the weight of the old value."


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
        TypeError: if an argument is of another kind, or holds what are no numbers.
        ValueError: if there is no such module, or its arrays have the features
            elsewhere, or values that cannot be those of a layer.

    Example:
        >>> import haiku as hk
        >>> def norm(x):
        ...     return hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        >>> module = hk.transform_with_state(norm)
        >>> params, state = module.init(jax.random.key(0), jnp.ones((8, 2)))
        >>> jaxbn.interop.from_haiku(params, state, decay_rate=0.9).scale
        Array([1., 1.], dtype=float32)
    """
    arguments.text("name", name, 'It is the full name, as "res_net/batch_norm".')
    for label, tree in (("params", params), ("state", state)):
        arguments.mapping(label, tree, "`init` and `apply` return it.")
    decay_rate = arguments.share("decay_rate", decay_rate, _OLD)
    mean, var = (_average(state, f"{name}/~/{k}_ema") for k in ("mean", "var"))
    _check_axis(axis, np.shape(mean["average"]))
    own = params.get(name, {})
    arguments.mapping(f"params[{name!r}]", own, "It has the arrays of the module.")
    counter = arguments.numbers(f"`counter` of {name!r}", mean["counter"])
    return read(
        {
            f"`average` of '{name}/~/mean_ema'": mean["average"],
            f"`average` of '{name}/~/var_ema'": var["average"],
            f"`counter` of '{name}/~/mean_ema'": counter.clip(0),  # of a warm-up
            f"`scale` of {name!r}": own.get("scale"),
            f"`offset` of {name!r}": own.get("offset"),
        },
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
        layer: the layer. What all modules of Haiku have must be in it: a momentum
            that is a number, `unbiased=False`, `debias=True` and features on axis 1 or
            the last.
        rank: the rank of the inputs: Haiku keeps all their axes.
        name: the full name of the module.

    Returns:
        The entries for parameters and for state.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if `layer` has other settings, or no values because it is traced,
            or an axis that `rank` or Haiku do not have.

    Example:
        >>> layer = jaxbn.interop.Layer(
        ...     jaxbn.init_state(2), jnp.ones(2), debias=True
        ... )
        >>> params, _ = jaxbn.interop.to_haiku(layer, rank=4)
        >>> params["batch_norm"]["scale"].shape
        (1, 1, 1, 2)
    """
    layer = checked(layer)
    arguments.text("name", name, 'It is the full name, as "res_net/batch_norm".')
    check_average(layer, "Haiku")
    check_settings(layer, "in every module of Haiku", unbiased=False, debias=True)
    hint = "It is the number of axes of the inputs."
    rank = options.whole("rank", rank, least=2, hint=hint)
    if layer.axis not in (-1, rank - 1, 1, 1 - rank):
        raise ValueError(
            f"`rank` must be 2 or more, with features on axis 1 or the last, got {rank}"
            f" with `layer.axis` {layer.axis}. Haiku has no other layout."
        )
    shape = [1] * rank
    shape[layer.axis] = -1
    count = number_of_updates(layer, "Haiku")
    assert layer.momentum is not None
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

    Raises:
        TypeError, ValueError: as `from_haiku` and `compare`.

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
    options = {"decay_rate": decay_rate, "epsilon": epsilon, "axis": axis}
    layer = from_haiku(params, state, **options)
    import haiku as hk

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


def _average(state: Tree, key: str) -> Mapping[str, Any]:
    """One moving average, with all that it consists of."""
    if key not in state:
        raise ValueError(
            f"`state` must contain {key!r}, got {sorted(map(str, state))!r}. Pass the "
            "full name of the module as `name`."
        )
    found = state[key]
    if not isinstance(found, Mapping) or not {"average", "counter"} <= found.keys():
        got = list(found) if isinstance(found, Mapping) else shown(found)
        raise ValueError(
            f"`state` must contain 'average' and 'counter' at {key!r}, got {got}. "
            "Pass the state of `hk.BatchNorm`."
        )
    return found


def _check_axis(axis: int, shape: tuple[int, ...]) -> None:
    """Refuses an axis other than that of the stored arrays, which keep all axes."""
    axis = options.whole("axis", axis, least=None, hint="It is 1 or -1.")
    fits = axis in (1, -1) and len(shape) > axis and shape[axis] == math.prod(shape)
    if not fits:
        raise ValueError(
            f"`axis` must be 1 or -1, where the features are in the shape {shape} of "
            f'the averages, got {axis}. It is 1 for `data_format="channels_first"`.'
        )
