"""Pairs the layers of PyTorch and Flax by rules, or by shape and order."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxbn.core.paths import pattern
from jaxbn.core.values import is_function, shown
from jaxbn.interop import arguments
from jaxbn.interop.order import Names, doubt, in_order

Arrays = Mapping[str, Any]
Rules = Mapping[str, str] | Callable[[str], str | None]


def _by_kind(layers: Mapping[str, Arrays]) -> dict[tuple, list[str]]:
    found: dict[tuple, list[str]] = {}
    for path, arrays in layers.items():
        found.setdefault(_kind(arrays), []).append(path)
    return found


def _kind(arrays: Arrays) -> tuple:
    """The kind of a layer and its shape; layers match only within one."""
    if "mean" in arrays:
        return "norm", np.shape(arrays["mean"])
    for name in ("kernel", "scale", "negative_slope"):
        if name in arrays:
            return name, np.shape(arrays[name])
    return ("other",)


def by_order(
    given: Mapping[str, Arrays],
    taking: Mapping[str, Arrays],
    names: Names | None,
    trees: Sequence[Names],
) -> dict[str, str]:
    """Pairs layers of the same kind and shape, in their order.

    Args:
        given: the layers of PyTorch by prefix, in the names of Flax.
        taking: those of Flax by path.
        names: of the state dictionary; None if its order is that of the model.
        trees: names in the order held, of each tree that the Flax model is made of.
    """
    sources, places = _by_kind(given), _by_kind(taking)
    free = {("other",), ("negative_slope", ())}  # may keep their values
    for kind in sources.keys() | (places.keys() - free):
        theirs, ours = sources.get(kind, []), places.get(kind, [])
        if len(theirs) != len(ours):
            raise ValueError(
                f"`source` must have as many layers as `into` of each kind and shape, "
                f"got {theirs!r} for {ours!r} of {kind!r}. Give `rules`, from names in "
                "PyTorch to paths; what they leave out stays."
            )
    pairs: dict[str, str] = {}
    for kind, theirs in sources.items():
        if names is not None:
            theirs = _defined("source", theirs, [names], ".")
        # Of linen, a collection without all of these layers cannot order them.
        ours = places[kind]
        whole = [tree for tree in trees if all(path in tree for path in ours)]
        pairs |= zip(theirs, _defined("into", ours, whole, "/"), strict=True)
    return {prefix: pairs[prefix] for prefix in given}


def _defined(
    name: str, paths: list[str], trees: Sequence[Names], sign: str
) -> list[str]:
    """Layers of one shape in the order of their definition, if a tree tells it."""
    found = [in_order(paths, tree, sign) for tree in trees]
    doubts = [doubt(p, tree, sign) for p, tree in zip(found, trees, strict=True)]
    if None in doubts:
        return found[doubts.index(None)]
    made = {
        "source": "the module with these weights, since files are sorted",
        "into": "what `init` or the class made outside of `jax.jit` and `jax.tree.map`",
    }
    raise ValueError(
        f"`{name}` must have layers of one shape in the order of their definition, got "
        f"{doubts[0]!r} sorted by name. Give `rules`, from names in PyTorch to paths, "
        f"or {made[name]}."
    )


def by_rules(
    sources: Mapping[str, Arrays], given: Mapping[str, Arrays], rules: Rules
) -> dict[str, str]:
    """Pairs layers as the rules name them, none of them twice.

    Args:
        sources: all of the state dictionary by prefix.
        given: those of them that can be converted.
        rules: from prefixes to paths.
    """
    path_of = _path_of(rules)
    pairs = {prefix: path_of(prefix) for prefix in sources}
    found = {prefix: path for prefix, path in pairs.items() if path is not None}
    if wrong := [path for path in found.values() if not isinstance(path, str)]:
        raise TypeError(
            f"`rules` must lead to paths or None, got {shown(wrong[0])}. A path is as "
            '"block/norm".'
        )
    for prefix, path in found.items():
        if prefix not in given:
            raise ValueError(
                f"`rules` must leave out what cannot be converted, got {path!r} for "
                f"{prefix!r} with {list(sources[prefix])!r}. Complete that layer, or "
                "make the patterns narrower."
            )
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
