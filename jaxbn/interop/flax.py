"""Flax: variables of linen layers, and nnx layers, of Flax or of jaxbn."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxbn.core.types import BatchNormState
from jaxbn.interop.layer import Difference, Layer, Peer, compare, running, vector


def from_linen(module: Any, variables: Mapping[str, Any], *, path: str = "") -> Layer:
    """Reads a layer from the variables of a linen model.

    Args:
        module: the `BatchNorm` module of Flax or jaxbn, for momentum, epsilon and axis.
        variables: of the whole model, with "batch_stats".
        path: where the layer is, as "block/norm". Default: the model is the layer.

    Returns:
        A Layer that goes on training as the module would.

    Raises:
        ValueError: if there are no running statistics at `path`, or the layer has an
            activation or several feature axes, which a Layer does not have.

    Example:
        >>> import flax.linen as nn
        >>> module = nn.BatchNorm(use_running_average=True, momentum=0.9)
        >>> variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> jaxbn.interop.from_linen(module, variables).momentum
        0.9
    """
    stats = _at(variables.get("batch_stats", {}), path)
    if "mean" not in stats:
        raise ValueError(
            f"`path` must lead to running statistics, got {path!r}. The keys there are "
            f"{sorted(stats)!r}."
        )
    params = _at(variables.get("params", {}), path)
    return _layer(module, {**params, **stats})


def to_linen(
    layer: Layer, variables: Mapping[str, Any] | None = None, *, path: str = ""
) -> dict[str, Any]:
    """Writes a layer into the variables of a linen model.

    Args:
        layer: the layer.
        variables: of the model. Default: of this layer alone.
        path: where to put the layer.

    Returns:
        New variables.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(1))
        >>> jaxbn.interop.to_linen(layer)["batch_stats"]["var"]
        Array([1.], dtype=float32)
    """
    variables = {} if variables is None else variables
    keys = [key for key in path.split("/") if key]
    old = _at(variables.get("batch_stats", {}), path)
    stats = {"mean": layer.state.mean, "var": layer.state.var}
    if layer.debias or layer.momentum is None or "count" in old:
        stats["count"] = layer.state.count
    params = {"scale": layer.scale, "bias": layer.bias}
    new = {
        "params": {k: v for k, v in params.items() if v is not None},
        "batch_stats": stats,
    }
    return {
        **variables,
        **{c: _put(variables.get(c, {}), keys, v) for c, v in new.items() if v},
    }


def from_nnx(source: Any) -> Layer:
    """Reads an nnx layer.

    Args:
        source: a `BatchNorm` of `flax.nnx` or `jaxbn.nnx`.

    Returns:
        A Layer that goes on training as the module would.

    Raises:
        ValueError: if the layer has an activation or several feature axes, which a
            Layer does not have.

    Example:
        >>> from flax import nnx
        >>> source = nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
        >>> jaxbn.interop.from_nnx(source).momentum
        0.9
    """
    names = ("mean", "var", "count", "scale", "bias")
    found = {name: getattr(source, name, None) for name in names}
    return _layer(source, {k: v[...] for k, v in found.items() if v is not None})


def to_nnx(layer: Layer, target: Any) -> None:
    """Writes a layer into an nnx layer of the same size.

    Args:
        layer: the layer.
        target: a `BatchNorm` of `flax.nnx` or `jaxbn.nnx`; changed in place.

    Raises:
        ValueError: if `target` has no place for the scale or the bias.

    Example:
        >>> from flax import nnx
        >>> target = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2), jnp.array([3.0, 3.0]))
        >>> jaxbn.interop.to_nnx(layer, target)
        >>> target.scale[...]
        Array([3., 3.], dtype=float32)
    """
    values = {**layer.state._asdict(), "scale": layer.scale, "bias": layer.bias}
    for name, value in values.items():
        variable = getattr(target, name, None)
        if variable is not None:
            neutral = jnp.ones if name == "scale" else jnp.zeros
            variable[...] = neutral(variable.shape) if value is None else value
        elif value is not None and name in ("scale", "bias"):
            raise ValueError(
                f"`target` must have a {name}, got none for a layer with one. Create "
                f"it with `use_{name}=True`."
            )


def check_linen(
    module: Any, variables: Mapping[str, Any], batches: Iterable[Any]
) -> Difference:
    """Trains a linen layer and the layer read from it side by side.

    Args:
        module: a `BatchNorm` module of Flax or jaxbn.
        variables: its own variables.
        batches: NumPy arrays.

    Returns:
        The largest differences.

    Example:
        >>> import flax.linen as nn
        >>> module, x = nn.BatchNorm(), jax.random.normal(jax.random.key(0), (8, 2))
        >>> variables = module.init(jax.random.key(0), x, use_running_average=True)
        >>> jaxbn.interop.check_linen(module, variables, [x]).train < 1e-5
        True
    """
    held = dict(variables)

    def train(x):
        y, new = module.apply(
            held, x, use_running_average=False, mutable=["batch_stats"]
        )
        held.update(new)
        return y

    peer = Peer(
        train,
        lambda x: module.apply(held, x, use_running_average=True),
        lambda: (held["batch_stats"]["mean"], held["batch_stats"]["var"]),
    )
    return compare(from_linen(module, variables), peer, batches)


def check_nnx(source: Any, batches: Iterable[Any]) -> Difference:
    """Trains a copy of an nnx layer and the layer read from it side by side.

    Args:
        source: a `BatchNorm` of `flax.nnx` or `jaxbn.nnx`; stays as it is.
        batches: NumPy arrays.

    Returns:
        The largest differences.

    Example:
        >>> from flax import nnx
        >>> source = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_nnx(source, [x]).train < 1e-5
        True
    """
    twin = copy.deepcopy(source)
    peer = Peer(
        lambda x: twin(jnp.asarray(x), use_running_average=False),
        lambda x: twin(jnp.asarray(x), use_running_average=True),
        lambda: (twin.mean[...], twin.var[...]),
    )
    return compare(from_nnx(source), peer, batches)


def _layer(module: Any, values: Mapping[str, Array]) -> Layer:
    activation = getattr(module, "activation", None)
    if activation is not None:
        raise ValueError(
            f"The layer must have no `activation`, got {activation!r}. Apply it after "
            "the layer before converting."
        )
    if jnp.ndim(values["mean"]) != 1:
        raise ValueError(
            f"The layer must have one feature axis, got axis={module.axis!r}. Other "
            "frameworks have no layer for several."
        )
    return Layer(
        _running(values),
        vector(values.get("scale")),
        vector(values.get("bias")),
        momentum=module.momentum,
        epsilon=module.epsilon,
        axis=module.axis,
        unbiased=getattr(module, "unbiased", False),
        debias=getattr(module, "debias", False),
    )


def _running(values: Mapping[str, Array]) -> BatchNormState:
    count = jnp.max(jnp.asarray(values.get("count", 0)))
    return running(values["mean"], values["var"], count)


def _at(tree: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for key in filter(None, path.split("/")):
        tree = tree.get(key, {})
    return tree


def _put(tree: Mapping[str, Any], keys: list[str], value: Mapping[str, Any]):
    if not keys:
        return {**tree, **value}
    return {**tree, keys[0]: _put(tree.get(keys[0], {}), keys[1:], value)}
