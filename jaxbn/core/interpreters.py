"""Rules of the primitives for the interpreters of `jax.experimental`.

`jet` (Taylor series) runs the reference implementation, `checkify` looks for NaN in
what a primitive returns, as both do with operations of lax.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax._src import checkify  # the table of its rules has no public name
from jax.experimental import jet
from jax.extend.core import Primitive


def register(primitive: Primitive, plain: Callable[..., Callable]) -> None:
    """Registers a primitive with both.

    Args:
        primitive: one that may return NaN.
        plain: (**params) -> a function of the operands that computes the results.
    """
    checkify.error_checks[primitive] = functools.partial(
        checkify.nan_error_check, primitive
    )
    jet.jet_rules[primitive] = functools.partial(_taylor, plain)


def _taylor(plain: Callable[..., Callable], primals, series, **params):
    """The Taylor series of a function in those operands that are not masks."""
    moving = [i for i, p in enumerate(primals) if jnp.issubdtype(p.dtype, jnp.inexact)]

    def function(*values):
        operands = list(primals)
        for i, value in zip(moving, values, strict=True):
            operands[i] = value
        return plain(**params)(*operands)

    values, terms = [primals[i] for i in moving], [series[i] for i in moving]
    # Between rules, terms are coefficients, without the factorials of derivatives.
    return jet.jet(function, values, terms, factorial_scaled=False)
