"""The four primitives that every stage is written on.

Their meaning is given in `jaxbn.backends.contract`, their derivatives in
`jaxbn.core.calculus`, which is what the stages import.
"""

import jax.numpy as jnp
from jax import Array
from jax.interpreters import ad

from jaxbn.core.kernel import Kernel

moments = Kernel("moments", ("x", "shift", "count", "where"))
sums = Kernel(
    "sums",
    ("a", "x", "center", "multiplier", "where", "gate_slope", "gate_offset"),
)
expand = Kernel(
    "expand",
    ("a", "multiplier", "slope", "offset", "x", "center", "where", "gate_slope",
     "gate_offset"),
)  # fmt: skip
gate = Kernel("gate", ("dy", "x", "center", "slope", "offset", "residual"))


def is_zero(tangent: object) -> bool:
    """Whether a tangent is absent or known to be zero."""
    return tangent is None or isinstance(tangent, ad.Zero)


def scale_by(full: Array, vector: Array, params: dict) -> Array:
    """The full array vector * full, linear in `full`."""
    zero = jnp.zeros_like(vector)
    return expand(full, vector, zero, zero, full, zero, None, **params)[0]


def spread(vector: Array, full: Array, params: dict) -> Array:
    """The full array vector * full, linear in `vector`."""
    zero = jnp.zeros_like(vector)
    return expand(None, None, vector, zero, full, zero, None, **params)[0]
