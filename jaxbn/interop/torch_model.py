"""Whole PyTorch models: their layers go into a Flax model of the same structure."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbn.core.values import shown
from jaxbn.interop import arguments

Arrays = dict[str, Any]
Rules = Mapping[str, str] | Callable[[str], str | None]


class Target(NamedTuple):
    """The layers of a Flax model.

    Attributes:
        layers: arrays by name, by the path of the layer, in order.
        write: from paths and their new arrays to the model.
        epsilon: that of the batch normalization at a path, where the model holds it.
    """

    layers: dict[str, Arrays]
    write: Callable[[dict[str, Arrays]], Any]
    epsilon: Callable[[str], float | None]


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
) -> TorchModel:
    """Writes the layers of a state dictionary into a Flax model.

    Args:
        values: the state dictionary.
        target: the Flax model.
        rules: from prefixes to paths; None matches by shape and order.
        layer_at: from a prefix to the batch normalization there, a `Layer`.
    """
    sources = _sources(values)
    ready = {p: _converted(p, kinds, layer_at) for p, kinds in sources.items()}
    known = {p: arrays for p, arrays in ready.items() if arrays}
    pairs = _in_order(known, target) if rules is None else _by_rules(known, rules)
    for prefix, path in pairs.items():
        _check(prefix, known[prefix], path, target, layer_at)
    new = {
        path: {k: v for k, v in known[prefix].items() if k in target.layers[path]}
        for prefix, path in pairs.items()
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
        prefix, _, name = key.rpartition(".")
        found.setdefault(prefix, {})[name] = value
    return found


def _converted(prefix: str, given: Arrays, layer_at: Callable) -> Arrays | None:
    """The arrays under the names and in the layouts of Flax; None of other layers."""
    if "running_mean" in given:
        layer = layer_at(f"{prefix}." if prefix else "")
        state = layer.state._asdict()
        arrays = {**state, "scale": layer.scale, "bias": layer.bias}
        return {k: v for k, v in arrays.items() if v is not None}
    if "weight" not in given or given.keys() - {"weight", "bias"}:
        return None
    weight = arguments.host(f"`source['{prefix}.weight']`", given["weight"])
    bias = {}
    if "bias" in given:
        bias = {"bias": arguments.host(f"`source['{prefix}.bias']`", given["bias"])}
    if weight.ndim == 1:
        return {"scale": weight, **bias}
    # (out, in, *window) becomes (*window, in, out).
    return {"kernel": np.moveaxis(weight, (0, 1), (-1, -2)), **bias}


def _kind(arrays: Arrays) -> tuple:
    """The kind of a layer and its shape; layers match only within one."""
    if "mean" in arrays:
        return "norm", np.shape(arrays["mean"])
    for name in ("kernel", "scale"):
        if name in arrays:
            return name, np.shape(arrays[name])
    return ("other",)


def _natural(path: str) -> list:
    """A key that sorts "Conv_10" behind "Conv_9"."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path)]


def _in_order(known: dict[str, Arrays], target: Target) -> dict[str, str]:
    """Pairs of layers of the same kind and shape, in their order."""
    places: dict[tuple, list[str]] = {}
    for path in sorted(target.layers, key=_natural):
        places.setdefault(_kind(target.layers[path]), []).append(path)
    sources: dict[tuple, list[str]] = {}
    for prefix, arrays in known.items():
        sources.setdefault(_kind(arrays), []).append(prefix)
    for kind in sources.keys() | (places.keys() - {("other",)}):
        theirs, ours = sources.get(kind, []), places.get(kind, [])
        if len(theirs) != len(ours):
            raise ValueError(
                f"`source` must have as many layers as `into` of each kind and shape, "
                f"got {theirs!r} for {ours!r} of {kind!r}. Give `rules`, from names in "
                "PyTorch to paths."
            )
    return {
        prefix: path
        for kind, prefixes in sources.items()
        for prefix, path in zip(prefixes, places[kind], strict=True)
    }


def _by_rules(known: dict[str, Arrays], rules: Rules) -> dict[str, str]:
    """Pairs that the rules name, none of them twice."""

    def path_of(prefix: str) -> str | None:
        if not isinstance(rules, Mapping):
            return rules(prefix)
        for pattern, path in rules.items():
            if match := re.fullmatch(pattern, prefix):
                return match.expand(path)
        return None

    pairs = {prefix: path_of(prefix) for prefix in known}
    found = {prefix: path for prefix, path in pairs.items() if path is not None}
    for prefix, path in found.items():
        others = [p for p, q in found.items() if q == path and p != prefix]
        if others:
            raise ValueError(
                f"`rules` must give each layer a path of its own, got {path!r} for "
                f"{[prefix, *others]!r}. Make the patterns narrower."
            )
    return found


def _check(prefix: str, arrays: Arrays, path: str, target: Target, layer_at) -> None:
    """Refuses a layer that the place does not fit."""
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
            raise ValueError(
                f"`source` must have a {name} of shape {want} for {path!r}, got "
                f"{found} from {prefix!r}. Change the model, or `rules`."
            )
    if missing := [k for k in arrays.keys() - there.keys() if k != "count"]:
        raise ValueError(
            f"`into` must have a {missing[0]} at {path!r} like {prefix!r}, got "
            f"{sorted(there)!r}. Change the model, or `rules`."
        )
    own = target.epsilon(path)
    if "mean" in arrays and own is not None:
        theirs = layer_at(f"{prefix}." if prefix else "").epsilon
        if not np.isclose(own, theirs, rtol=1e-6, atol=0):
            raise ValueError(
                f"`into` must have epsilon={theirs!r} at {path!r} like {prefix!r}, got "
                f"{own!r}. Construct the layer with it."
            )


def check_torch_model(
    module: Any, function: Callable[[np.ndarray], Any], batches: Iterable[Any]
) -> float:
    """Compares a PyTorch model at evaluation with a function in JAX.

    Args:
        module: a module of PyTorch, on the CPU; stays as it is.
        function: from a batch, laid out as for PyTorch, to what the module returns.
        batches: NumPy arrays.

    Returns:
        The largest absolute difference of the outputs.

    Raises:
        TypeError: if `module` is no module of PyTorch.
        ValueError: if outputs differ in shape.

    Example:
        >>> import torch
        >>> module = torch.nn.BatchNorm1d(2)
        >>> layer = jaxbn.interop.from_torch(module)
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_torch_model(module, layer.evaluate, [x]) < 1e-5
        True
    """
    if not arguments.is_a(module, "Module", "torch"):
        raise TypeError(
            f"`module` must be a module of PyTorch, got {shown(module)}. Load a state "
            "dictionary into one to run it."
        )
    import copy

    import torch

    twin, largest = copy.deepcopy(module).eval(), 0.0
    for batch in batches:
        x = np.array(batch)
        with torch.no_grad():
            want = twin(torch.from_numpy(x)).numpy()
        got = np.asarray(function(x))
        if got.shape != want.shape:
            raise ValueError(
                f"`function` must return shape {want.shape} as `module` does, got "
                f"{got.shape}. Transpose the images on the way in and out."
            )
        largest = max(largest, float(np.abs(got - want).max(initial=0)))
    return largest
