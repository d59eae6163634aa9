"""The primitives that every stage is written on.

The meaning of the first four is given in `jaxbn.backends.contract`, their derivatives
in `jaxbn.core.calculus`. The others have values that cost nothing; they are there for
their derivatives, which `by_input` and `by_output` give.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import ad

from jaxbn.backends.contract import Kernels, counted, rows, without_nonfinite
from jaxbn.backends.xla import along
from jaxbn.core.activation import name_of
from jaxbn.core.op import Op

_GATE = ("gate_slope", "gate_offset")

moments = Op("moments", ("x", "where"))
sums = Op("sums", ("a", "x", "center", "multiplier", "where", *_GATE))
expand = Op(
    "expand", ("a", "multiplier", "slope", "offset", "x", "center", "where", *_GATE)
)
gate = Op("gate", ("dy", "x", "center", "slope", "offset", "residual"))


def is_zero(tangent: object) -> bool:
    """Tells whether a tangent is absent or known to be zero."""
    return tangent is None or isinstance(tangent, ad.Zero)


def zeros(values: list[Array]) -> list[ad.Zero]:
    """Tangents of constants."""
    return [ad.Zero(jax.typeof(value)) for value in values]


def scale_by(full: Array, vector: Array, params: dict) -> Array:
    """The full array vector * full, linear in `full`."""
    zero = jnp.zeros_like(vector)
    return expand(full, vector, zero, zero, full, zero, None, **params)[0]


def spread(vector: Array, full: Array, params: dict) -> Array:
    """The full array vector * full, linear in `vector`."""
    zero = jnp.zeros_like(vector)
    return expand(None, None, vector, zero, full, zero, None, **params)[0]


def weighted_sums(x: Array, center: Array, where: Array | None, axes) -> tuple:
    """The sums of w (x - center) and of w (x - center)^2, in operations of lax."""
    distance = x.astype(center.dtype) - along(center, x, axes)
    first = distance if where is None else distance * where.astype(distance.dtype)
    return tuple(term.sum(rows(x, axes)) for term in (first, first * distance))


def total_of_weights(full: Array, where: Array) -> Array:
    """The transpose of broadcasting weights to the shape of a full array."""
    shared = [i for i, n in enumerate(where.shape) if n == 1]
    return full.sum(shared, keepdims=True).astype(where.dtype)


def line_of(slope, offset, x, center, params):
    """The full array slope * (x - center) + offset in the statistics type."""
    axes = params["axes"]
    distance = x.astype(center.dtype) - along(center, x, axes)
    return distance * along(slope, x, axes) + along(offset, x, axes)


def _replaced_jvp(primals, tangents, **params):
    return replaced(*primals, **params), [ad.instantiate_zeros(tangents[1])]


# `value` with the derivative of `other`, which is the same but for rounding.
replaced = Op(
    "replaced",
    ("value", "other"),
    lambda kernels: lambda value, other, **_: value,
    lambda kernels: lambda value, other, **_: other,
    has_loops=False,
)
replaced.define_derivatives(_replaced_jvp)


def _saved_jvp(primals, tangents, **params):
    return saved(*primals, **params), list(tangents)


# `x` as the backward pass finds it.
saved = Op(
    "saved",
    ("x",),
    lambda kernels: lambda x, **_: kernels.saved(x),
    lambda kernels: lambda x, **_: x,
    has_loops=False,
)
saved.define_derivatives(_saved_jvp)


def _finite(kernels: Kernels):
    del kernels
    return lambda x, where, **_: without_nonfinite(x, where)


def _finite_jvp(primals, tangents, **params):
    # As it stands, so that one array of the size of x is kept, and no mask.
    return finite(*primals, **params), [ad.instantiate_zeros(tangents[0])]


# `x` with zero instead of NaN or infinity where `where` is false.
finite = Op("finite", ("x", "where"), _finite)
finite.define_derivatives(_finite_jvp)


def transposed_in_x(
    ct: Array, operands: tuple, where: Array | None, params: dict
) -> list[Array | None]:
    """The transpose of a + slope (x - center) + offset in all of these but `slope`.

    Only a user's own `jax.linear_transpose` asks for it, no derivative does.

    Args:
        ct: the cotangent of the sum, a full array.
        operands: a, slope, offset, x and center.
        where: of the affine term.
        params: the axes and the implementation.
    """
    _, slope, *_ = operands
    seen = counted(ct, where)
    total, _ = sums(seen, seen, jnp.zeros_like(slope), None, None, both=False, **params)
    back = (ct, None, total, scale_by(seen, slope, params), -slope * total)
    a, *others = (
        part if ad.is_undefined_primal(operand) else None
        for part, operand in zip(back, operands, strict=True)
    )
    return [a, None, *others, *[None] * 3]


def require_linear(activation: Any) -> None:
    """Refuses an activation in a function that is transposed."""
    if activation is not None:
        raise NotImplementedError(
            "`activation` must be None in a function that is transposed, got "
            f"{name_of(activation)}. A linear function has none."
        )
