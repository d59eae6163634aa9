"""Trees of statistics, and of moments at the places of the states."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.tree_util import keystr

from jaxbn.core import checks, values
from jaxbn.core.records import record
from jaxbn.core.types import BatchNormState, Moments

_HINT = "Write Moments wherever `states` has a BatchNormState."


def over(function: Callable, *trees: Any) -> Any:
    """Applies `function` to each state or moments, and those at the same place."""
    return jax.tree.map(function, *trees, is_leaf=_is_whole)


def of_states(tree: Any, name: str = "states") -> Any:
    """A tree of nothing but states, all checked.

    Raises:
        TypeError: if something else is in it.
        ValueError: as `jaxbn.core.records.record` does.
    """

    def one(path, state):
        return record(name + keystr(path), state)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=_is_whole)


def with_moments(states: Any, moments: Any, name: str = "moments") -> Any:
    """Moments that fit the states of a tree.

    Args:
        states: a tree of states, from `of_states`.
        moments: a tree of moments.
        name: of the moments.

    Raises:
        TypeError: if something else is in the tree.
        ValueError: if structures or shapes differ.
    """
    same_structure(name, moments, "states", states, hint=_HINT)

    def one(path, state, moments):
        names = {"name": name + keystr(path), "of": f"states{keystr(path)}"}
        return checks.moments_of(state, moments, **names)

    return jax.tree_util.tree_map_with_path(one, states, moments, is_leaf=_is_whole)


def same_structure(name: str, tree: Any, other: str, like: Any, *, hint: str) -> None:
    """Refuses a tree of another structure, states and moments being leaves."""
    own, want = (jax.tree.structure(t, is_leaf=_is_whole) for t in (tree, like))
    if own != want:
        raise ValueError(
            f"`{name}` must have the structure of `{other}`, {want}, got {own}. {hint}"
        )


def of_arrays(name: str, tree: Any) -> Any:
    """A tree of nothing but arrays."""

    def one(path, leaf):
        return values.array(name + keystr(path), leaf)

    return jax.tree_util.tree_map_with_path(one, tree)


def _is_whole(value: Any) -> bool:
    """Recognizes a state or moments, also as a dictionary from a checkpoint."""
    if isinstance(value, Mapping):
        return "mean" in value and ("var" in value or "m2" in value)
    return isinstance(value, BatchNormState | Moments)
