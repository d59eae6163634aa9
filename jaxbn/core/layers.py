"""Checks of the options of a layer of Flax, whatever its input.

Those that say something about an input, as the feature axis, are checked with it too.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxbn.backends import dispatch
from jaxbn.core import checks, options, values
from jaxbn.core.activation import function_of
from jaxbn.core.save import check_mode

Rule = Callable[[str, Any], Any]
"""Raises an error if the option of this name has a wrong value."""


def array(x: Any) -> Array:
    """The input of a layer, which may be of integers as in Flax."""
    x = values.array("x", x)
    whole = x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer)
    return x if whole else checks.array(x)


def _unless_none(rule: Rule) -> Rule:
    """A rule for an option that may be left out."""

    def optional(name, value):
        if value is not None:
            rule(name, value)

    return optional


def count(hint: str) -> Rule:
    """A rule for numbers of at least one."""
    return lambda name, value: options.whole(name, value, hint=hint)


def _function(hint: str) -> Rule:
    return lambda name, value: options.function(name, value, hint=hint)


def _axis(name: str, value: Any) -> None:
    options.static(name, value)
    given = values.several(value)
    if not given or any(values.integer(axis) is None for axis in given):
        raise TypeError(
            f"`{name}` must be an integer or a tuple of integers, got "
            f"{values.shown(value)}. It names the feature axis or axes."
        )


def _metadata(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise TypeError(
            f"`{name}` must be a dictionary with names as keys, got "
            f"{values.shown(value)}. It is handed to `nnx.Param`."
        )


def _frozen(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value == "statistics"):
        try:
            options.flag(name, value)
        except TypeError as error:
            raise TypeError(
                f'`{name}` must be True, False or "statistics", got '
                f'{values.shown(value)}. With "statistics" scale and bias are trained.'
            ) from error


_FLAGS = (
    "use_bias",
    "use_scale",
    "use_fast_variance",
    "force_float32_reductions",
    "debias",
    "unbiased",
    "skip_nonfinite",
    "update_statistics",
    "shared_affine",
)
_INITIALIZER = _function("It is called with a key, a shape and a type.")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_FLAGS, options.flag),
    "use_running_average": _unless_none(options.flag),
    "frozen": _frozen,
    "num_features": options.sizes,
    "axis": _axis,
    "momentum": lambda _, value: options.momentum(value, debias=False),
    "epsilon": lambda _, value: options.epsilon(value),
    "dtype": _unless_none(options.inexact),
    "param_dtype": options.inexact,
    "bias_init": _INITIALIZER,
    "scale_init": _INITIALIZER,
    "bias_metadata": _metadata,
    "scale_metadata": _metadata,
    "promote_dtype": _function("It is called with a tuple of arrays."),
    "axis_name": lambda _, value: checks.axis_names(value),
    "axis_groups": _unless_none(options.groups),
    "axis_index_groups": _unless_none(options.groups),
    "activation": lambda _, value: function_of(value),
    "save": lambda _, value: check_mode(value),
    "implementation": lambda _, value: dispatch.choose(value),
}


def rules(**more: Rule) -> Mapping[str, Rule]:
    """The rules of a kind of layers, by the names of the options."""
    return MappingProxyType({**_RULES, **more})


def group_size(name: str, value: Any) -> int:
    """A number of examples in a group."""
    hint = "It is the number of examples that share statistics."
    return options.whole(name, value, hint=hint)


def order_of_updates(name: str, value: Any) -> None:
    """Refuses an unknown order of updates."""
    hint = "It says how the running statistics follow the groups."
    options.one_of(name, value, ("pooled", "sequential"), hint=hint)


def bound(name: str, value: Any) -> Any:
    """`r_max`, which is at least 1, or `d_max`, which is at least 0."""
    least = {"r_max": 1, "d_max": 0}[name]
    hint = "With r_max=1 and d_max=0 it is batch normalization."
    return options.numbers(
        name, value, lambda v: v >= least, f"at least {least}", hint=hint
    )


def bound_or_schedule(name: str, value: Any) -> None:
    """Refuses what is neither a bound nor a function of the number of updates."""
    if not values.is_function(value):
        bound(name, value)


def has_own(layer: Any, scale: Any, bias: Any) -> None:
    """Refuses scale or bias of a call for a layer that has its own."""
    for name, value in (("scale", scale), ("bias", bias)):
        if value is not None and getattr(layer, f"use_{name}"):
            raise ValueError(
                f"`{name}` must be None for a layer with its own, got "
                f"{values.shown(value)}. Construct it with `use_{name}=False`."
            )
