"""What the functions for domains are given, checked and in one form."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxbn.core import checks, values
from jaxbn.core.records import STATE, record
from jaxbn.core.types import BatchNormState

_STATES = STATE._replace(create="Create them with `init_domain_state`.")


def checked(
    x: Array, states: BatchNormState, domain: Any, axis: int | Sequence[int]
) -> tuple[Array, int, BatchNormState, Array]:
    """`x`, its feature axis, the states, and the domain of each example, shape (B,).

    Raises:
        TypeError: if a domain is no integer, or `states` is no BatchNormState.
        ValueError: if shapes do not fit, or a known domain is not one of `states`.
    """
    x = checks.array(x)
    feature = checks.one_feature_axis(x, axis)
    states = record("states", states, _STATES)
    checks.complex_mean("states", states, "`x`", x)
    ids = values.array("domain", domain)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"`domain` must be an integer, got {ids.dtype}. It numbers the domains "
            "from 0."
        )
    if ids.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"`domain` must be a scalar or have shape {x.shape[:1]} for `x` with shape "
            f"{x.shape}, got {ids.shape}. The first axis of `x` lists the examples."
        )
    if states.mean.ndim != 2 or states.mean.shape[1] != x.shape[feature]:
        raise ValueError(
            f"`states` must have shape (domains, {x.shape[feature]}), got "
            f"{states.mean.shape}. Create them with `init_domain_state`."
        )
    in_range("domain", domain, len(states.mean))
    return x, feature, states, jnp.broadcast_to(ids, x.shape[:1])


def in_range(name: str, domain: Any, count: int) -> None:
    """Refuses numbers of domains that there are not, where they are known."""
    values.require(
        name,
        domain,
        lambda ids: (ids >= 0) & (ids < count),
        f"at least 0 and below {count}, the number of domains",
        hint="It numbers the domains from 0.",
    )


def by_domain(
    name: str, given: Array | None, states: BatchNormState, *, neutral: float
) -> Array:
    """Scale or bias with a row for each domain, (D, C)."""
    shape = states.mean.shape
    if given is None:
        return jnp.full(shape, neutral, states.var.dtype)
    given = checks.numbers(name, given, states.mean)
    if given.shape not in (shape, shape[1:]):
        raise ValueError(
            f"`{name}` must have shape {shape[1:]} or {shape}, got {given.shape}. It "
            "is shared by the domains or has a row for each."
        )
    return jnp.broadcast_to(given.astype(states.var.dtype), shape)
