"""The rule for all writers: what the other side has fixed must be so in the layer."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxbn.core.values import known, shown
from jaxbn.interop import arguments
from jaxbn.interop.layer import Layer, counts

# A share of the next batch below this is lost in float32.
_NOTHING = 2.0**-24


def check_settings(layer: Layer, place: str, **fixed: Any) -> None:
    """Refuses a layer with settings other than those of its new place.

    Args:
        layer: the layer.
        place: what a message calls the other side.
        fixed: what it has, by field of Layer.
    """
    theirs = {k: v for k, v in fixed.items() if not _same(layer, k, v)}
    if theirs:
        ours = _listed({name: getattr(layer, name) for name in theirs})
        raise ValueError(
            f"`layer` must have {_listed(theirs)} as {place}, got {ours}. Where the "
            f"former is what you want, write `layer._replace({_listed(theirs)})`."
        )


def check_average(layer: Layer, place: str) -> None:
    """Refuses a cumulative average where there is none."""
    if layer.momentum is None:
        raise ValueError(
            f"`layer.momentum` must be a number, got None. {place} has no cumulative "
            "average; choose a momentum with `layer._replace`."
        )


def arrays_of(layer: Layer, *, count: bool) -> dict[str, Array]:
    """The arrays of a layer by field of Layer or its state, with or without count."""
    found = {**layer.state._asdict(), "scale": layer.scale, "bias": layer.bias}
    absent = () if count else ("count",)
    return {k: v for k, v in found.items() if v is not None and k not in absent}


def arrays_for(layer: Layer, found: Mapping[str, Any], place: str) -> dict[str, Array]:
    """The arrays of a layer, in the types of a target that has places for just these.

    Args:
        layer: the layer.
        found: what the target has, by field of Layer and of its state.
        place: what a message calls the target.
    """
    given = "count" in found
    ours = arrays_of(layer, count=counts(layer) if _start_matters(layer) else given)
    if ours.keys() != found.keys():
        raise ValueError(
            f"{place} must have {', '.join(ours)} of `layer`, got {', '.join(found)}. "
            f"Create it with these{_or_change(layer, ours, found)}."
        )
    for name, value in ours.items():
        kind = getattr(found[name], "dtype", None)
        floats = isinstance(kind, np.dtype) and jnp.issubdtype(kind, np.inexact)
        if not floats or found[name].shape != value.shape:
            raise ValueError(
                f"{place} must have floating point of shape {value.shape} like `layer` "
                f"for its {name}, got {shown(found[name])}. Write into a "
                "layer of the same size."
            )
    return {name: _as(value, found[name], place) for name, value in ours.items()}


def number_of_updates(layer: Layer, place: str) -> int:
    """The number of updates of a whole layer."""
    numbers = np.unique(np.asarray(layer.state.count))
    if numbers.size > 1 and counts(layer) and _start_matters(layer):
        raise ValueError(
            "`layer.state.count` must be the same in all channels, got "
            f"{numbers[0]:.0f} to {numbers[-1]:.0f}. {place} counts once for a layer: "
            "choose with `layer._replace(state=layer.state._replace(count=...))`."
        )
    return int(numbers.max(initial=0))


def _same(layer: Layer, name: str, value: Any) -> bool:
    """Tells whether a setting is the same, or makes no difference."""
    ours = getattr(layer, name)
    if name == "debias":
        return ours == value or layer.momentum is None or not _start_matters(layer)
    if name == "unbiased" and layer.momentum == 1:  # the statistics do not move
        return True
    if isinstance(ours, Tracer) or isinstance(value, Tracer):
        return ours is value
    if isinstance(ours, float) and value is not None:
        # Elsewhere it may be in float32, or 1 minus the same.
        return math.isclose(ours, arguments.number(name, value), rel_tol=1e-6)
    return ours == value


def _start_matters(layer: Layer) -> bool:
    """Tells whether the next average depends on the number of batches, in float32."""
    numbers, momentum = known(layer.state.count), layer.momentum
    if numbers is None or momentum is None or isinstance(momentum, Tracer):
        return True
    return momentum ** (1 + numbers.min(initial=np.inf)) > _NOTHING


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _or_change(layer: Layer, ours: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Writes the cure for a layer that lacks what its target has."""
    size = layer.state.mean.size
    neutral = {
        "scale": f"scale=jnp.ones({size})",
        "bias": f"bias=jnp.zeros({size})",
        "count": "debias=True",
    }
    more = [neutral[name] for name in found.keys() - ours.keys() if name in neutral]
    return f", or write `layer._replace({', '.join(more)})`" if more else ""


def _as(value: Array, old: Any, place: str) -> Array:
    """An array in the type of the old one; what is complex stays so."""
    if jnp.iscomplexobj(value) and not jnp.issubdtype(old.dtype, jnp.complexfloating):
        return value
    new = value.astype(old.dtype)
    arguments.finite(f"What {place} holds in {old.dtype}", new)
    return new
