"""Flax linen: variables of layers, of Flax or of jaxbn."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxbn.core.values import shown
from jaxbn.deploy.linen_model import boxed_as, unboxed
from jaxbn.interop import arguments
from jaxbn.interop.flax import layer_of, plain
from jaxbn.interop.layer import Layer, checked, counts
from jaxbn.interop.order import names_of
from jaxbn.interop.peers import Difference, Peer, compare
from jaxbn.interop.targets import arrays_for, arrays_of
from jaxbn.interop.torch_model import Target

_STATE = ("mean", "var", "count")


def from_linen(module: Any, variables: Mapping[str, Any], *, path: str = "") -> Layer:
    """Reads a layer from the variables of a linen model.

    Args:
        module: the `BatchNorm` module of Flax or jaxbn, for momentum, epsilon and axis.
        variables: of the whole model, with "batch_stats".
        path: where the layer is, as "block/norm". Default: the model is the layer.

    Returns:
        A Layer that goes on training as the module would.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if there are no running statistics at `path`, or other arrays than
            those of `module`, or values that cannot be those of a layer; or `module`
            has an activation or several feature axes, which a Layer does not have.

    Example:
        >>> import flax.linen as nn
        >>> module = nn.BatchNorm(use_running_average=True, momentum=0.9)
        >>> variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> jaxbn.interop.from_linen(module, variables).momentum
        0.9
    """
    plain("module", module, "flax.linen", "jaxbn.linen")
    found = _branch(variables, path)
    names = ["mean", "var", *["count"] * counts(module)]
    names += [k for k in ("scale", "bias") if getattr(module, f"use_{k}")]
    if found.keys() != set(names):
        raise ValueError(
            f"`variables` must have {', '.join(names)} of `module` at {path!r}, got "
            f"{', '.join(found)}. Pass all collections, and the module that they are "
            "of."
        )
    labels = {name: f"`{name}` of `variables` at {path!r}" for name in names}
    return layer_of(module, labels, found)


def to_linen(
    layer: Layer, variables: Mapping[str, Any] | None = None, *, path: str = ""
) -> dict[str, Any]:
    """Writes a layer into the variables of a linen model.

    Args:
        layer: the layer.
        variables: of the model, with a layer of the same size and with the same arrays
            at `path`; its arrays keep their types. Momentum, epsilon and axis are those
            of the module, which variables do not hold. Default: of this layer alone.
        path: where to put the layer.

    Returns:
        New variables.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if `variables` have no such layer at `path`, or of another size, or
            with other arrays: scale, bias, and the count that `debias` needs.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(1))
        >>> jaxbn.interop.to_linen(layer)["batch_stats"]["var"]
        Array([1.], dtype=float32)
    """
    layer = checked(layer, traced=True)
    arguments.text("path", path, 'It is where the layer goes, as "block/norm".')
    if variables is None:
        variables, found = {}, arrays_of(layer, count=counts(layer))
    else:
        found = _branch(variables, path)
    new = arrays_for(layer, found, f"`variables` at {path!r}")
    keys = [key for key in path.split("/") if key]
    groups = {
        "params": {k: v for k, v in new.items() if k not in _STATE},
        "batch_stats": {k: v for k, v in new.items() if k in _STATE},
    }
    written = {
        collection: _put(variables.get(collection, {}), keys, values)
        for collection, values in groups.items()
        if values
    }
    return {**variables, **written}


def model_layers(variables: Mapping[str, Any]) -> Target:
    """All layers of the variables of a model, for `from_torch`."""
    layers: dict[str, dict[str, Any]] = {}
    keys: list[str] = []
    names = []

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                walk(value, (*path, str(key)))
            else:
                layers.setdefault("/".join(path), {})[key] = unboxed({key: value})[key]
                keys.append("/".join((*path, str(key))))

    found = [variables[k] for k in ("params", "batch_stats") if k in variables]
    if not found:
        raise ValueError(
            "`into` must have the collections of a model, as params and batch_stats, "
            f"got {shown(list(variables))}. Pass all that `module.init` returns, or "
            "the nnx model itself."
        )
    for collection in found:
        keys.clear()
        walk(collection, ())
        names.append(names_of(keys, "/"))

    def write(new: dict[str, dict[str, Any]]) -> dict[str, Any]:
        result = dict(variables)
        for path, arrays in new.items():
            for name, value in arrays.items():
                kind = "batch_stats" if name in _STATE else "params"
                keys = [key for key in path.split("/") if key]
                result[kind] = _put(result[kind], keys, {name: value})
        return result

    return Target(layers, write, names, {})


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

    Raises:
        TypeError, ValueError: as `from_linen` and `compare`.

    Example:
        >>> import flax.linen as nn
        >>> module, x = nn.BatchNorm(), jax.random.normal(jax.random.key(0), (8, 2))
        >>> variables = module.init(jax.random.key(0), x, use_running_average=True)
        >>> jaxbn.interop.check_linen(module, variables, [x]).train < 1e-5
        True
    """
    layer = from_linen(module, variables)
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
        lambda: (_branch(held, "")["mean"], _branch(held, "")["var"]),
    )
    return compare(layer, peer, batches)


def _branch(variables: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The arrays of the layer at a path, of both collections."""
    arguments.mapping("variables", variables, "`module.init` returns it.")
    arguments.text("path", path, 'It is where the layer is, as "block/norm".')
    stats = variables.get("batch_stats", {})
    found = _at(stats, path)
    if not {"mean", "var"} <= found.keys():
        known = list(_layers(stats, ()))
        raise ValueError(
            f"`path` must lead to running statistics, got {path!r}. In "
            f"`variables['batch_stats']` there are {known!r}."
        )
    return {**unboxed(_at(variables.get("params", {}), path)), **unboxed(found)}


def _at(tree: Any, path: str) -> Mapping[str, Any]:
    for key in filter(None, path.split("/")):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _layers(tree: Any, path: tuple[str, ...]) -> Iterator[str]:
    """The paths of all running statistics."""
    if isinstance(tree, Mapping) and "mean" in tree:
        yield "/".join(path)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _layers(value, (*path, str(key)))


def _put(tree: Mapping[str, Any], keys: list[str], new: Mapping[str, Any]) -> Any:
    """The tree with other arrays at a path, in the boxes that were around them."""
    if keys:
        return {**tree, keys[0]: _put(tree.get(keys[0], {}), keys[1:], new)}
    return {**tree, **{key: boxed_as(tree.get(key), new[key]) for key in new}}
