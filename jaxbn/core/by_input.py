"""The derivative of a layer that keeps its input, in two passes.

`begin` and `finish` mark where the passes of the derivative are. The tangents that run
between them are slope dx and the sums of dx and of 2 dx (x - center); from the sums
follow those of slope and offset, by plain arithmetic and collectives.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from jaxbn.backends.contract import Gate, Kernels
from jaxbn.core import calculus
from jaxbn.core.op import Op
from jaxbn.core.primitives import is_zero, spread, weighted_sums, zeros

_PIECEWISE_LINEAR = (jax.nn.relu, jax.nn.relu6, jax.nn.leaky_relu)


def start(layer: Any, inputs: Any, line: Any) -> list[Array]:
    """`x` and two vectors, with the derivative of the first pass.

    The vectors stand for the sums of x - center and of its square over this device;
    only their derivatives are ever used.

    Args:
        layer, inputs: see `jaxbn.core.batch_norm`.
        line: the constants center, slope and offset.
    """
    of = _Gated(layer.activation, inputs.residual, line.slope, line.offset)
    by = {**of.options("other"), **layer.params}
    given = (inputs.x, line.center, line.slope, inputs.where)
    return begin(*given, *of.line, **by)


def output(layer: Any, inputs: Any, line: Any, carried: Array) -> Array:
    """activation(slope (x - center) + offset + residual).

    Args:
        layer, inputs: as in `start`.
        line: with the derivatives of slope and offset that follow from its sums.
        carried: `x` as `start` returned it.
    """
    given = (carried, inputs.residual, line.slope, line.offset, inputs.x, line.center)
    by = {"activation": layer.activation, "save": layer.save, **layer.params}
    return finish(*given, **by)[0]


class _Gated:
    """The derivative of the activation, where it is a factor inside of the two passes.

    In the backward pass it is then a factor of the cotangent and never stored. With a
    residual it has to be: it is the cotangent of the residual. Others than these
    activations have second derivatives, which the passes leave out.
    """

    def __init__(self, activation: Any, residual: Array | None, *line: Array):
        self.inside = residual is None and activation in _PIECEWISE_LINEAR
        self.activation = activation
        self.line: Sequence[Array] = line if self.inside else ()

    def options(self, part: str) -> dict:
        """The option of a pass in which it rides."""
        return {"gate": Gate(part, self.activation)} if self.inside else {}


def _begin_jvp(primals, tangents, **params):
    # d sum(x - c) = sum(dx),  d sum((x - c)^2) = 2 sum(dx (x - c)), c being constant;
    # and of the derivative of the output, what is known without the sums: slope dx.
    # With weights these sums are weighted, and those of dw are added.
    x, center, slope, where, *line = primals
    dx, dw = tangents[0], tangents[3]
    out = begin(*primals, **params)
    if is_zero(dx) and is_zero(dw):
        return out, zeros(out)
    scaled, first, second = ad.Zero(jax.typeof(x)), 0, 0
    if not is_zero(dx):
        given = (dx, x, center, slope, where)
        scaled, first, moment = calculus.sums(*given, *line, **params)
        second = 2 * moment
    if not is_zero(dw):
        more = weighted_sums(x, center, dw, params["axes"])
        first, second = first + more[0], second + more[1]
    return out, [scaled, first, second]


def two_sums(x, center, slope, where, *_, axes, **__):
    """Computes what `begin` stands for, to be differentiated by other means."""
    del slope
    return x, *weighted_sums(x, center, where, axes)


begin = Op(
    "begin",
    ("x", "center", "slope", "where", "gate_slope", "gate_offset"),
    lambda kernels: lambda x, center, *_, **__: (x, center, center),
    lambda kernels: two_sums,
    has_loops=False,
)
begin.define_derivatives(_begin_jvp)


def _finish(kernels: Kernels):
    def function(
        carried, residual, slope, offset, x, center, *, axes, activation, save
    ):
        del x, save
        given = (residual, None, slope, offset, carried, center, None)
        return kernels.expand(*given, axes=axes, activation=activation)

    return function


def _kept(kernels: Kernels):
    def function(*operands, save, **options):
        y = _finish(kernels)(*operands, save=save, **options)
        # XLA would compute y from `x` again, without rounding it, and so keep `x`.
        return lax.optimization_barrier(y) if save == "output" else y

    return function


def _finish_jvp(primals, tangents, *, activation, save, **params):
    # y = f(z), z = slope (x - c) + offset + residual:
    #   dy = f'(z) (slope dx + dslope (x - c) + doffset + dresidual).
    _, residual, slope, offset, x, center = primals
    scaled, d_residual, d_slope, d_offset, dx, _ = tangents
    out = finish(*primals, activation=activation, save=save, **params)
    if all(map(is_zero, (scaled, d_residual, d_slope, d_offset))):
        return out, zeros(out)
    of = _Gated(activation, residual, slope, offset)
    if is_zero(scaled):
        scaled = None
    else:
        at = (x, center, *of.line) if of.inside else ()
        given, by = (ad.instantiate_zeros(dx), slope, *at), of.options("other")
        scaled = scaled + nothing(*given, **by, **params)[0]
    d_slope, d_offset = map(ad.instantiate_zeros, (d_slope, d_offset))
    given, by = (scaled, None, d_slope, d_offset, x, center, None), of.options("affine")
    (dz,) = calculus.expand(*given, *of.line, **by, **params)
    dz = dz if is_zero(d_residual) else dz + d_residual
    if activation is not None and not of.inside:
        given = (dz, x, center, slope, offset, residual)
        if activation in _PIECEWISE_LINEAR:
            # f'(z) = f'(y): one array is read instead of x and the residual, and the
            # next layer keeps y anyway.
            given = (dz, *out)
        (dz,) = calculus.gate(*given, activation=activation, **params)
    return out, [dz]


finish = Op(
    "finish",
    ("carried", "residual", "slope", "offset", "x", "center"),
    _kept,
    _finish,
)
finish.define_derivatives(_finish_jvp)


def _nothing_jvp(primals, tangents, *, gate=None, **params):
    a, _, x, center, *line = primals
    da, d_slope, *_ = tangents
    out = nothing(*primals, gate=gate, **params)
    terms = [] if is_zero(da) else nothing(da, *primals[1:], gate=gate, **params)
    if not is_zero(d_slope):
        if gate is not None:
            by = {"activation": gate.activation, **params}
            (a,) = calculus.gate(a, x, center, *line, None, **by)
        terms.append(spread(d_slope, a, params))
    return out, [sum(terms[1:], terms[0])] if terms else zeros(out)


def _nothing_transpose(cotangents, a, *others, **params):
    assert ad.is_undefined_primal(a)
    return [*nothing(*cotangents, *others, **params), *[None] * len(others)]


# Zero in the shape of `a`. It stands for (slope - constant) a, where slope has the
# value of the constant: `begin` multiplies by the constant, and the derivative of slope
# is a part of the second derivative.
nothing = Op(
    "nothing",
    ("a", "slope", "x", "center", "gate_slope", "gate_offset"),
    lambda kernels: lambda a, *_, **__: jnp.zeros_like(a),
)
nothing.define_derivatives(_nothing_jvp, _nothing_transpose)
