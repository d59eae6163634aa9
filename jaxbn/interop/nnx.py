"""Flax nnx: layers of Flax or of jaxbn."""

import copy
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.interop.flax import axis_of, layer_of, plain
from jaxbn.interop.layer import Layer, checked
from jaxbn.interop.peers import Difference, Peer, compare
from jaxbn.interop.targets import arrays_for, check_settings
from jaxbn.interop.torch_model import Target

_PACKAGES = ("flax.nnx", "jaxbn.nnx")


def from_nnx(source: Any) -> Layer:
    """Reads an nnx layer.

    Args:
        source: a `BatchNorm` of `flax.nnx` or `jaxbn.nnx`.

    Returns:
        A Layer that goes on training as the module would.

    Raises:
        TypeError: if `source` is no such layer, or is abstract.
        ValueError: if it has an activation or several feature axes, which a Layer does
            not have, or values that cannot be those of a layer.

    Example:
        >>> from flax import nnx
        >>> source = nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
        >>> jaxbn.interop.from_nnx(source).momentum
        0.9
    """
    plain("source", source, *_PACKAGES)
    found = _arrays(source)
    return layer_of(source, {name: f"`source.{name}`" for name in found}, found)


def to_nnx(layer: Layer, target: Any) -> None:
    """Writes a layer into an nnx layer of the same size and settings.

    Args:
        layer: the layer, with the settings of `target`; those of Flax have
            `unbiased=False` and `debias=False`.
        target: a `BatchNorm` of `flax.nnx` or `jaxbn.nnx`; changed in place. Its
            arrays keep their types.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if `target` has another size or other settings, or only one of the
            two has a scale, a bias or a count; nothing is changed then.

    Example:
        >>> from flax import nnx
        >>> target = nnx.BatchNorm(2, use_bias=False, rngs=nnx.Rngs(0))
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2), jnp.array([3.0, 3.0]))
        >>> jaxbn.interop.to_nnx(layer, target)
        >>> target.scale[...]
        Array([3., 3.], dtype=float32)
    """
    layer = checked(layer, traced=True)
    plain("target", target, *_PACKAGES)
    check_settings(
        layer,
        "in `target`",
        momentum=target.momentum,
        epsilon=target.epsilon,
        axis=axis_of(target),
        unbiased=getattr(target, "unbiased", False),
        debias=getattr(target, "debias", False),
    )
    found = _arrays(target)
    for name, value in arrays_for(layer, found, "`target`").items():
        variable, old = getattr(target, name), found[name]
        if isinstance(old, Array) and old.dtype == value.dtype:
            variable[...] = value
        else:  # abstract, or it becomes complex
            variable.set_value(value)


def model_layers(model: Any) -> Target:
    """All layers of an nnx model, for `from_torch`, which writes into them."""
    from flax import nnx

    nodes = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(model)}
    modules = {p: node for p, node in nodes.items() if isinstance(node, nnx.Module)}
    held = {path: _variables(module) for path, module in modules.items()}
    held = {path: found for path, found in held.items() if found}
    layers = {
        path: {k: v.get_value() for k, v in found.items()}
        for path, found in held.items()
    }
    for path, node in nodes.items():  # what nothing in PyTorch is known to match
        place, _, name = path.rpartition("/")
        if isinstance(node, nnx.Param) and place not in held:
            layers.setdefault(place, {})[name] = node.get_value()
    turned = [p for p in held if not getattr(modules[p], "transpose_kernel", True)]
    for path in turned:
        layers[path]["kernel"] = jax.eval_shape(_turned, layers[path]["kernel"])

    def write(new: dict[str, dict[str, Any]]) -> Any:
        for path, arrays in new.items():
            for name, value in arrays.items():
                turn = name == "kernel" and path in turned
                held[path][name].set_value(_turned(value) if turn else value)
        return model

    names = {path: list(vars(module)) for path, module in modules.items()}
    names |= {path: list(map(str, n)) for path, n in nodes.items() if type(n) is dict}
    return Target(layers, write, [names], modules)


def check_nnx(source: Any, batches: Iterable[Any]) -> Difference:
    """Trains a copy of an nnx layer and the layer read from it side by side.

    Args:
        source: a `BatchNorm` of `flax.nnx` or `jaxbn.nnx`; stays as it is.
        batches: NumPy arrays.

    Returns:
        The largest differences.

    Raises:
        TypeError, ValueError: as `from_nnx` and `compare`.

    Example:
        >>> from flax import nnx
        >>> source = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_nnx(source, [x]).train < 1e-5
        True
    """
    layer = from_nnx(source)
    twin = copy.deepcopy(source)
    peer = Peer(
        lambda x: twin(jnp.asarray(x), use_running_average=False),
        lambda x: twin(jnp.asarray(x), use_running_average=True),
        lambda: (twin.mean[...], twin.var[...]),
    )
    return compare(layer, peer, batches)


def _arrays(module: Any) -> dict[str, Any]:
    """Returns the values of the variables of a layer, by their names."""
    return {k: v.get_value() for k, v in _variables(module).items()}


def _variables(module: Any) -> dict[str, Any]:
    """Returns the variables of a layer, also a dense one, by their names."""
    names = ("mean", "var", "count", "kernel", "scale", "bias", "negative_slope")
    found = {name: getattr(module, name, None) for name in names}
    return {k: v for k, v in found.items() if hasattr(v, "get_value")}


def _turned(kernel: Any) -> Any:
    """A kernel as it is with `transpose_kernel=True`, as in PyTorch; and back."""
    return jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
