"""Checks of the NamedTuples that users hand back: statistics and moments."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbn.core import values
from jaxbn.core.types import BatchNormState, Moments


class Rule(NamedTuple):
    """A requirement on the values of a field, checked where they are known.

    Attributes:
        right: from values to whether they are right.
        requirement: what they must be, as "finite".
    """

    right: Callable[[np.ndarray], Any]
    requirement: str


class Kind(NamedTuple):
    """A kind of NamedTuple.

    Attributes:
        of: the type.
        create: how to make one, a sentence.
        rules: of some of its fields.
        repair: what to do about wrong values, a sentence.
    """

    of: Any
    create: str
    rules: Mapping[str, Rule]
    repair: str


NOT_NEGATIVE = Rule(lambda v: ~(v < 0), "not negative")
COUNT = Rule(lambda v: v >= 0, "not negative")
FINITE = Rule(np.isfinite, "finite")

STATE = Kind(
    BatchNormState,
    "Create one with `jaxbn.init_state(num_features)`.",
    {
        "mean": FINITE,
        "var": Rule(lambda v: np.isfinite(v) & (v >= 0), "finite and not negative"),
        "count": COUNT,
    },
    "Restore an earlier state; `skip_nonfinite=True` keeps such batches out of it.",
)
_STEPS = STATE._replace(
    create="Create them with `init_timestep_state(max_steps, num_features)`."
)
MOMENTS = Kind(
    Moments,
    "Compute them with `jaxbn.moments(x)`.",
    {"count": COUNT, "m2": NOT_NEGATIVE},
    "It is a sum over values; compute it with `jaxbn.moments(x)`.",
)


def record(name: str, given: Any, kind: Kind = STATE) -> Any:
    """A NamedTuple of arrays of one shape; a single count is that of all channels.

    Args:
        name, given: of the argument.
        kind: what it must be.

    Raises:
        TypeError: if it is something else.
        ValueError: if shapes differ, or a known value breaks a rule of its field.
    """
    if not isinstance(given, kind.of):
        raise TypeError(
            f"`{name}` must be a {kind.of.__name__}, got {type(given).__name__}. "
            f"{_cure(name, given, kind)}"
        )
    fields = {k: values.array(f"{name}.{k}", v) for k, v in given._asdict().items()}
    shape = fields["mean"].shape
    if fields["count"].shape == ():
        fields["count"] = jnp.broadcast_to(fields["count"], shape)
    for field, value in fields.items():
        if value.shape != shape:
            raise ValueError(
                f"`{name}.{field}` must have the shape {shape} of `{name}.mean`, got "
                f"{value.shape}. {kind.create}"
            )
        if not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(
                f"`{name}.{field}` must be numbers, got {value.dtype}. {kind.create}"
            )
        if field != "mean" and jnp.iscomplexobj(value):
            raise TypeError(
                f"`{name}.{field}` must be real, got {value.dtype}. Only a mean may be "
                "complex."
            )
        if field in kind.rules:
            rule = kind.rules[field]
            values.require(f"{name}.{field}", value, *rule, hint=kind.repair)
    return kind.of(**fields)


def of_steps(name: str, states: Any) -> BatchNormState:
    """Statistics for each time step, checked."""
    states = record(name, states, _STEPS)
    if states.mean.ndim < 2:
        raise ValueError(
            f"`{name}` must have shape (steps, channels), got {states.mean.shape}. "
            f"{_STEPS.create}"
        )
    return states


def _cure(name: str, given: Any, kind: Kind) -> str:
    """Returns the cure for another type that may hold the same values."""
    made, fields = kind.of.__name__, set(kind.of._fields)
    if isinstance(given, Mapping) and set(given) == fields:
        return f"Write `{made}(**{name})`."  # as restored from a checkpoint
    if isinstance(given, Mapping) and fields - set(given) == {"count"}:
        return (
            f"Write `{made}(**{name}, count=n)` with the number of batches that it "
            "averages."
        )
    plain = isinstance(given, list | tuple) and not hasattr(given, "_fields")
    if plain and len(given) == len(fields):
        return f"Write `{made}(*{name})`."
    return kind.create
