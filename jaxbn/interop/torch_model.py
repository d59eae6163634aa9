"""Whole PyTorch models: their layers go into a Flax model of the same structure."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbn.core.paths import pattern
from jaxbn.core.values import is_function, shown
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


class _Source(NamedTuple):
    """A layer of PyTorch: arrays in Flax's names and layouts; epsilon if it has one."""

    arrays: Arrays
    epsilon: float | None = None


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
    ready = {p: _converted(p, arrays, layer_at) for p, arrays in sources.items()}
    known = {prefix: source for prefix, source in ready.items() if source}
    pairs = _in_order(known, target) if rules is None else _by_rules(known, rules)
    new = {}
    for prefix, path in pairs.items():
        _check(prefix, known[prefix], path, target)
        arrays, names = known[prefix].arrays, target.layers[path]
        new[path] = {name: arrays[name] for name in arrays if name in names}
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


def _converted(prefix: str, given: Arrays, layer_at: Callable) -> _Source | None:
    """The layer in the names and layouts of Flax; None of layers of other kinds."""
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
        label = f"`source[{f'{prefix}.{name}'!r}]`"
        found[name] = arguments.host(label, arguments.numbers(label, value))
    weight = found.pop("weight")
    if weight.ndim < 2:
        return _Source({"scale": weight, **found})
    # (out, in, *window) becomes (*window, in, out).
    return _Source({"kernel": np.moveaxis(weight, (0, 1), (-1, -2)), **found})


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
    parts = enumerate(re.split(r"(\d+)", path))
    return [int(part) if i % 2 else part for i, part in parts]


def _in_order(known: dict[str, _Source], target: Target) -> dict[str, str]:
    """Pairs of layers of the same kind and shape, in their order."""
    places: dict[tuple, list[str]] = {}
    for path in sorted(target.layers, key=_natural):
        places.setdefault(_kind(target.layers[path]), []).append(path)
    sources: dict[tuple, list[str]] = {}
    for prefix, source in known.items():
        sources.setdefault(_kind(source.arrays), []).append(prefix)
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


def _by_rules(known: dict[str, _Source], rules: Rules) -> dict[str, str]:
    """Pairs that the rules name, none of them twice."""
    path_of = _path_of(rules)
    pairs = {prefix: path_of(prefix) for prefix in known}
    found = {prefix: path for prefix, path in pairs.items() if path is not None}
    if wrong := [path for path in found.values() if not isinstance(path, str)]:
        raise TypeError(
            f"`rules` must lead to paths or None, got {shown(wrong[0])}. A path is as "
            '"block/norm".'
        )
    for prefix, path in found.items():
        others = [p for p, q in found.items() if q == path and p != prefix]
        if others:
            raise ValueError(
                f"`rules` must give each layer a path of its own, got {path!r} for "
                f"{[prefix, *others]!r}. Make the patterns narrower."
            )
    return found


def _path_of(rules: Rules) -> Callable[[str], Any]:
    """The function of the prefix that the rules are."""
    if not isinstance(rules, Mapping) and is_function(rules):
        return rules
    hint = r'For example {r"layer(\d)[.]bn": r"blocks/\1/norm"}, or a function.'
    arguments.mapping("rules", rules, hint)
    assert isinstance(rules, Mapping)
    patterns = [(pattern("rules", key, hint=hint), path) for key, path in rules.items()]

    def path_of(prefix: str) -> Any:
        for matches, path in patterns:
            if match := matches(prefix):
                try:
                    return match.expand(path)
                except (re.error, TypeError) as error:
                    raise ValueError(
                        f"`rules` must lead to paths with groups of their patterns, "
                        f"got {path!r}: {error}. {hint}"
                    ) from error
        return None

    return path_of


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
            raise ValueError(
                f"`source` must have a {name} of shape {want} for {path!r}, got "
                f"{found} from {prefix!r}. Change the model, or `rules`."
            )
    if missing := [k for k in arrays.keys() - there.keys() if k != "count"]:
        raise ValueError(
            f"`into` must have a {missing[0]} at {path!r} like {prefix!r}, got "
            f"{sorted(there)!r}. Change the model, or `rules`."
        )
    own, theirs = target.epsilon(path), source.epsilon
    if own is None or theirs is None:
        return
    if not np.isclose(own, theirs, rtol=1e-6, atol=0):
        raise ValueError(
            f"`into` must have epsilon={theirs!r} at {path!r} like {prefix!r}, got "
            f"{own!r}. Construct the layer with it."
        )
