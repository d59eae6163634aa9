"""Shared by the tools for whole models of linen and of nnx."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbn.core.paths import chosen as chosen
from jaxbn.core.paths import require_some as require_some
from jaxbn.core.values import known, shown

# They decide about variables, which are kept.
_OF_VARIABLES = {
    "self",
    "num_features",
    "param_dtype",
    "force_float32_reductions",
    "use_bias",
    "use_scale",
    "bias_init",
    "scale_init",
    "bias_metadata",
    "scale_metadata",
    "rngs",
    "parent",
    "name",
}
_INITIAL = {"mean": 0, "var": 1, "sigma": 1, "count": 0}


def check_target(to: Any, base: type, options: Mapping[str, Any]) -> None:
    """Refuses a class that is no layer, and options that it has not.

    Args:
        to: the class, or None for any.
        base: the class of all layers.
        options: of the layers to be.
    """
    if to is not None and not (isinstance(to, type) and issubclass(to, base)):
        place = base.__module__.removesuffix("_base")
        raise TypeError(
            f"`to` must be a class of layers of `{place}`, got {shown(to)}. Pass "
            f"`{place}.BatchNorm` or one of the variants."
        )
    kind: Any = to or base
    known = settings_of(kind, base)
    for name, value in options.items():
        if name not in known:
            raise TypeError(
                f"`options` must be settings of {kind.__name__}, got {name!r}. There "
                f"are {', '.join(sorted(known))}."
            )
        if name in kind.rules:
            kind.rules[name](name, value)
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in options:
            raise TypeError(
                f"`{name}` must be given for {kind.__name__}, got nothing. Pass it "
                "beside `to`."
            )


def settings_of(kind: type, base: type) -> dict[str, Any]:
    """The settings of a class of layers that do not concern variables: the defaults."""
    inits = (base.__init__, kind.__init__)
    both = [inspect.signature(init).parameters.values() for init in inits]
    named = [p for part in both for p in part if p.kind is not p.VAR_KEYWORD]
    return {p.name: p.default for p in named if p.name not in _OF_VARIABLES}


def require_untrained(path: str, mean: Any, var: Any) -> None:
    """Refuses averages of batches that nobody counted."""
    values = [known(v) if isinstance(v, Array) else None for v in (mean, var)]
    initial = [
        v is None or bool((v == i).all()) for v, i in zip(values, (0, 1), strict=True)
    ]
    if not all(initial):
        raise ValueError(
            "`debias` must be False, and `momentum` a number, for a layer that is "
            f"trained and has no count of its batches, got {path!r}. Convert the model "
            "before it is trained, or leave them out."
        )


def is_layer(names: Collection[str]) -> bool:
    """Recognizes the running statistics of a layer by their names."""
    stems = {name.removesuffix("_of_each") for name in names}
    return "mean" in stems and bool({"var", "sigma"} & stems)


def reset(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The running statistics of a layer before the first batch, in their types."""

    def first(name):
        value = _INITIAL.get(name.removesuffix("_of_each"))
        if value is None:  # no statistic: a weight
            return statistics[name]
        full: Callable = lambda leaf: jnp.full_like(leaf, value)  # noqa: E731
        return jax.tree.map(full, statistics[name])

    return {name: first(name) for name in statistics}
