"""`sums` and `expand` with a gate, written without one: for derivatives.

Where only the operands move in which they are linear, a gated primitive is its own
derivative. Where others move, that of these compositions takes its place.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxbn.backends.contract import Gate
from jaxbn.core.primitives import expand, gate, is_zero, scale_by, sums


def derivative(function: Callable, primals: Sequence, tangents: Sequence) -> Any:
    """The tangent of `function`, in those operands whose tangents are not zero."""
    moving = [i for i, tangent in enumerate(tangents) if not is_zero(tangent)]

    def at(*values):
        changed = list(primals)
        for i, value in zip(moving, values, strict=True):
            changed[i] = value
        return function(*changed)

    return jax.jvp(at, [primals[i] for i in moving], [tangents[i] for i in moving])[1]


def plain_sums(of_gate: Gate, params: dict) -> Callable:
    """`sums` with a gate, written without: to be differentiated in all operands."""

    def function(a, x, center, multiplier, where, *line):
        by = {"activation": of_gate.activation, **params}
        (gated,) = gate(a, x, center, *line, None, **by)
        scaled, summed = (gated, a) if of_gate.part == "other" else (a, gated)
        out = sums(summed, x, center, None, where, **params)
        return (
            out if multiplier is None else [scale_by(scaled, multiplier, params), *out]
        )

    return function


def plain_expand(of_gate: Gate, params: dict) -> Callable:
    """`expand` with a gate, written without."""

    def function(a, multiplier, slope, offset, x, center, where, *line):
        by = {"activation": of_gate.activation, **params}
        affine = (slope, offset, x, center)
        if of_gate.part == "other":
            (a,) = gate(a, x, center, *line, None, **by)
            return expand(a, multiplier, *affine, where, **params)
        # Masked after the gate and before it alike: both are zero there.
        plain = expand(None, None, *affine, where, **params)
        (z,) = gate(*plain, x, center, *line, None, **by)
        if a is None:
            return [z]
        return [z + (a if multiplier is None else scale_by(a, multiplier, params))]

    return function
