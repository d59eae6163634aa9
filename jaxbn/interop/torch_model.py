"""Whole PyTorch models: their layers go into a Flax model of the same structure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbn.core.values import known, shown
from jaxbn.interop import arguments
from jaxbn.interop.order import Names, names_of
from jaxbn.interop.torch_pairs import Rules, by_order, by_rules

Arrays = dict[str, Any]


class Target(NamedTuple):
    """The layers of a Flax model.

    Attributes:
        layers: arrays by name, by the path of the layer.
        write: from paths and their new arrays to the model.
        names: in the order held, of each tree that the model is made of.
        modules: by path, where the model has them.
    """

    layers: dict[str, Arrays]
    write: Callable[[dict[str, Arrays]], Any]
    names: Sequence[Names]
    modules: Mapping[str, Any]


class _Source(NamedTuple):
    """A layer of PyTorch: arrays in Flax's names and layouts; the rest where known."""

    arrays: Arrays
    epsilon: float | None = None
    transposed: bool | None = None


class TorchModel(NamedTuple):
    """A Flax model with the weights of a PyTorch model.

    Attributes:
        model: new variables of linen, or the nnx model itself.
        matched: the path of the layer, by the prefix in PyTorch.
        unused: prefixes in PyTorch that went nowhere.
        untouched: paths in Flax that kept their values.
    """

    model: Any
    matched: dict[str, str]
    unused: list[str]
    untouched: list[str]


def fill(
    values: Mapping[str, Any],
    target: Target,
    rules: Rules | None,
    layer_at: Callable[[str], Any],
    modules: Mapping[str, Any],
    epsilon: float,
) -> TorchModel:
    """Writes the layers of a state dictionary into a Flax model.

    Args:
        values: the state dictionary.
        target: the Flax model.
        rules: from prefixes to paths; None matches by shape and order.
        layer_at: from a prefix to the batch normalization there, a `Layer`.
        modules: of PyTorch by prefix; none of a dictionary.
        epsilon: where there are no modules.
    """
    sources = _sources(values)
    ready: dict[str, _Source] = {}
    slopes = any("negative_slope" in arrays for arrays in target.layers.values())
    for prefix, arrays in sources.items():
        module = modules.get(prefix)
        if source := _converted(prefix, arrays, layer_at, module, epsilon, slopes):
            ready[prefix] = source
    given = {prefix: source.arrays for prefix, source in ready.items()}
    if rules is None:
        names = _source_names(values)
        pairs = by_order(given, target.layers, names, target.names)
    else:
        pairs = by_rules(sources, given, rules)
    new = {}
    for prefix, path in pairs.items():
        _check(prefix, ready[prefix], path, target)
        new[path] = {
            name: _held(given[prefix][name], old, f"{name} of {path!r}")
            for name, old in target.layers[path].items()
            if name in given[prefix]
        }
    return TorchModel(
        target.write(new),
        pairs,
        [prefix for prefix in sources if prefix not in pairs],
        [path for path in target.layers if path not in new],
    )


def _sources(values: Mapping[str, Any]) -> dict[str, Arrays]:
    """The arrays of each layer by its prefix, without the last dot."""
    found: dict[str, Arrays] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise TypeError(
                f"`source` must have names as keys, got {shown(key)}. Pass a state "
                'dictionary, with keys as "layer1.0.bn1.weight".'
            )
        if isinstance(value, Mapping):
            raise ValueError(
                f"`source` must have an array at each key, got a dictionary at {key!r} "
                f"beside {list(values)!r}. Pass the one with the weights, as "
                f"`source[{key!r}]`."
            )
        prefix, _, name = key.rpartition(".")
        found.setdefault(prefix, {})[name] = value
    return found


def _source_names(values: Mapping[str, Any]) -> Names | None:
    """Names at each level; None of what PyTorch made, which is in order."""
    if hasattr(values, "_metadata"):
        return None
    # Files are sorted by type, then by name: integers tell nothing.
    return names_of((k for k in values if not k.endswith("num_batches_tracked")), ".")


def _converted(
    prefix: str,
    given: Arrays,
    layer_at: Callable,
    module: Any,
    epsilon: float,
    slopes: Any,
) -> _Source | None:
    """The layer in the names and layouts of Flax; None of layers of other kinds.

    Without a module a single number is a slope of PReLU if `slopes`, or else a scale.
    """
    if "running_mean" in given:
        layer = layer_at(f"{prefix}." if prefix else "")
        state = layer.state._asdict()
        arrays = {**state, "scale": layer.scale, "bias": layer.bias}
        arrays = {k: v for k, v in arrays.items() if v is not None}
        return _Source(arrays, layer.epsilon)
    if "weight" not in given or given.keys() - {"weight", "bias"}:
        return None
    found = {}
    for name, value in given.items():
        label = f"`source[{f'{prefix}.{name}'.lstrip('.')!r}]`"
        found[name] = arguments.host(label, arguments.numbers(label, value))
        arguments.finite(label, found[name])
    weight = found.pop("weight")
    if weight.ndim < 2:
        single = slopes and weight.shape == (1,) and not found
        if single if module is None else _is(module, "PReLU"):
            return _Source({"negative_slope": weight.squeeze()})
        if module is not None and _is(module, "BatchNorm"):
            # It tracks no statistics, so there they are those before the first batch.
            found |= {"mean": np.zeros_like(weight), "var": np.ones_like(weight)}
        known_epsilon = epsilon if module is None else getattr(module, "eps", None)
        return _Source({"scale": weight, **found}, known_epsilon)
    # The weight of an Embedding looks like that of a Linear.
    if module is not None and not _is(module, "Linear", "_ConvNd"):
        return None
    # (out, in, *window) becomes (*window, in, out), also of those that are transposed.
    arrays = {"kernel": np.moveaxis(weight, (0, 1), (-1, -2)), **found}
    transposed = None if module is None else _is(module, "ConvTranspose")
    return _Source(arrays, transposed=transposed)


def _is(module: Any, *names: str) -> bool:
    """Recognizes a module by part of the name of one of its bases."""
    bases = [base.__name__ for base in type(module).__mro__]
    return any(name in base for name in names for base in bases)


def _check(prefix: str, source: _Source, path: str, target: Target) -> None:
    """Refuses a layer that the place does not fit."""
    arrays = source.arrays
    there = target.layers.get(path)
    if there is None:
        raise ValueError(
            f"`rules` must lead to layers of `into`, got {path!r} for {prefix!r}. It "
            f"has {list(target.layers)!r}."
        )
    for name in there.keys() - {"count"}:
        want, got = np.shape(there[name]), arrays.get(name)
        if got is None or np.shape(got) != want:
            found = "nothing" if got is None else np.shape(got)
            tracks = got is not None or name not in ("mean", "var")
            hint = "" if tracks else ", or pass the module of a layer without any"
            raise ValueError(
                f"`source` must have a {name} of shape {want} for {path!r}, got "
                f"{found} from {prefix!r}. Change the model, or `rules`{hint}."
            )
    if missing := [k for k in arrays.keys() - there.keys() if k != "count"]:
        raise ValueError(
            f"`into` must have a {missing[0]} at {path!r} like {prefix!r}, got "
            f"{sorted(there)!r}. Change the model, or `rules`."
        )
    module = target.modules.get(path)
    if source.transposed and module is None:
        raise NotImplementedError(
            f"`source` must have no transposed convolution for linen, got {prefix!r}: "
            "variables do not tell how it is turned. If it has `transpose_kernel=True`"
            ", pass the state dictionary."
        )
    turned = None if module is None else _is(module, "ConvTranspose")
    if None not in (turned, source.transposed) and turned != source.transposed:
        raise ValueError(
            f"`into` must have a convolution at {path!r} that is transposed where "
            f"{prefix!r} is, got {type(module).__name__}. Change the model, or `rules`."
        )
    own, theirs = getattr(module, "epsilon", None), source.epsilon
    if own is None or theirs is None:
        return
    if not np.isclose(own, theirs, rtol=1e-6, atol=0):
        raise ValueError(
            f"`into` must have epsilon={theirs!r} at {path!r} like {prefix!r}, got "
            f"{own!r}. Construct the layer with it; for a state dictionary, `epsilon` "
            "is PyTorch's."
        )


def _held(value: Any, old: Any, what: str) -> Any:
    """A value in the type and shape of the old one, if that can hold it."""
    real = not jnp.issubdtype(old.dtype, jnp.complexfloating)
    with np.errstate(over="ignore"):
        new = jnp.asarray(value.real if real else value, old.dtype).reshape(old.shape)
    got, want = known(new), known(value)
    if got is None or want is None:
        return new
    got = got.astype(complex if np.iscomplexobj(got) else float)
    # The least precise type has two bits behind the point.
    lost = ~np.isclose(got, want.reshape(got.shape), rtol=0.125, atol=1e-6)
    if lost.any():
        raise ValueError(
            f"`into` must have a type that holds the {what}, got {old.dtype} for "
            f"{want.reshape(got.shape)[lost][0]}. Make the model in another type."
        )
    return new
