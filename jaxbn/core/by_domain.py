"""What the functions for domains are given, checked and in one form."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.core import checks
from jaxbn.core.types import BatchNormState


def checked(
    x: Array, states: BatchNormState, domain: Any, axis: int | Sequence[int]
) -> tuple[Array, int, Array]:
    """`x`, its feature axis, and the domain of each example, shape (B,), integers.

    Raises:
        TypeError: if a domain is no integer.
        ValueError: if shapes do not fit, or a domain that is not in a
            JAX array is not one of `states`.
    """
    x = checks.array(x)
    (feature,) = checks.feature_axes(x, axis)
    ids = jnp.asarray(domain)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"`domain` must be an integer, got {ids.dtype}. It numbers the domains "
            "from 0."
        )
    if feature == 0 or ids.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"`domain` must be a scalar or have shape {x.shape[:1]} for `x` with shape "
            f"{x.shape} and features on axis {feature}, got {ids.shape}. The first "
            "axis of `x` lists the examples."
        )
    if states.mean.ndim != 2 or states.mean.shape[1] != x.shape[feature]:
        raise ValueError(
            f"`states` must have shape (domains, {x.shape[feature]}), got "
            f"{states.mean.shape}. Create them with `init_domain_state`."
        )
    if not isinstance(domain, Array):  # a JAX array may be traced and is not read
        count, known = states.mean.shape[0], np.asarray(domain)
        wrong = known[(known < 0) | (known >= count)]
        if wrong.size:
            raise ValueError(
                f"`domain` must be at least 0 and below {count}, the number of domains "
                f"of `states`, got {wrong.flat[0]}. It numbers the domains from 0."
            )
    return x, feature, jnp.broadcast_to(ids, x.shape[:1])


def by_domain(
    name: str, values: Array | None, states: BatchNormState, *, neutral: float
) -> Array:
    """Scale or bias with a row for each domain, (D, C)."""
    shape = states.mean.shape
    values = jnp.full(shape, neutral) if values is None else jnp.asarray(values)
    if values.shape not in (shape, shape[1:]):
        raise ValueError(
            f"`{name}` must have shape {shape[1:]} or {shape}, got {values.shape}. It "
            "is shared by the domains or has a row for each."
        )
    return jnp.broadcast_to(values.astype(states.var.dtype), shape)
