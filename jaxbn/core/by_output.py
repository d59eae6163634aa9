"""The derivative of a layer that keeps its output in place of its input.

This is the in-place activated batch normalization of Rota Bulo, Porzi and Kontschieder,
2017, https://arxiv.org/abs/1712.02616: the next layer keeps the output anyway.

With f(z + residual) = y and z = slope (x - center) + offset, and f linear on either
side of zero, x - center = (y / f' - residual - offset) / slope: no array is used that
is not y or a residual.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from jaxbn.backends.contract import statistics_type
from jaxbn.core import calculus
from jaxbn.core.activation import name_of
from jaxbn.core.op import Op
from jaxbn.core.primitives import is_zero, zeros

SMALLEST_SCALE = 2.0**-10
"""With "output", a smaller |scale| counts as this: the output must tell the input."""


def negative_slope(activation: Callable | None) -> float:
    """The derivative of the activation at negative values."""
    if activation is None:
        return 1.0
    function, options = activation, {}
    if isinstance(activation, functools.partial) and not activation.args:
        function, options = activation.func, dict(activation.keywords)
    slope = options.pop("negative_slope", 0.01)
    known = function is jax.nn.leaky_relu and not options
    if known and isinstance(slope, float) and slope > 0:
        return slope
    raise NotImplementedError(
        "`activation` must have an inverse with save='output', got "
        f"{name_of(activation)}. Use None, 'leaky_relu' or functools.partial(jax.nn."
        "leaky_relu, negative_slope=0.1), or save='recompute'."
    )


def invertible(scale: Array | None) -> Array | None:
    """`scale` with a |scale| of at least `SMALLEST_SCALE`; a derivative of one."""
    if scale is None:
        return None
    least = jnp.where(scale < 0, -SMALLEST_SCALE, SMALLEST_SCALE)
    used = jnp.where(jnp.abs(scale) < SMALLEST_SCALE, least, scale)
    return scale + lax.stop_gradient(used - scale)


def start(layer: Any, inputs: Any, line: Any, y: Array) -> list[Array]:
    """The same as `by_input.start`, with a derivative computed from `y`.

    Args:
        layer, inputs: as there.
        line: center, slope and offset with their derivatives.
        y: the output, as `by_input.output` returns it.
    """
    given = (inputs.x, *line, inputs.residual, inputs.where, y)
    return begin(*given, activation=layer.activation, **layer.params)


def output(layer: Any, inputs: Any, line: Any, y, carried, moving: Any) -> Array:
    """`y`, with the first derivative that follows from what `start` returned.

    The rule is a function of `y`, `line` and the residual, which have derivatives of
    their own, those by the input; so it can be differentiated.

    Args:
        layer, inputs, line, y: as in `start`.
        carried: `x` as `start` returned it.
        moving: the line with the derivative that follows from the sums of `start`.
    """
    vectors = (moving.slope, moving.offset, line.slope, line.offset)
    given = (y, carried, inputs.residual, *vectors)
    return finish(*given, activation=layer.activation, **layer.params)[0]


def _begin_jvp(primals, tangents, *, activation, **params):
    # As in `by_input`, with x - c = (y / f' - residual - offset) / slope:
    #   2 sum(dx (x - c)) = 2 sum(dx (y / f' - residual - offset)) / slope.
    _, _, slope, offset, residual, where, y = primals
    dx = tangents[0]
    out = begin(*primals, activation=activation, **params)
    if is_zero(dx):
        return out, zeros(out)
    of = _Constants(activation, params)
    scaled, total, moment = _sums(of, residual, where, dx, y, offset, slope)
    return out, [scaled, total, 2 * moment / slope]


begin = Op(
    "begin_by_output",
    ("x", "center", "slope", "offset", "residual", "where", "y"),
    lambda kernels: lambda x, center, *_, **__: (x, center, center),
    has_loops=False,
)
begin.define_derivatives(_begin_jvp)


def _finish_jvp(primals, tangents, *, activation, **params):
    # dy = f' (slope dx + dslope (x - c) + doffset + dresidual); with k = dslope / slope
    #    = f' (slope dx + doffset - k offset - k residual + dresidual) + k y.
    y, _, residual, _, _, slope, offset = primals
    scaled, d_residual, d_slope, d_offset = moving = tangents[1:5]
    if all(map(is_zero, moving)):
        return [y], zeros([y])
    scaled, d_slope, d_offset = map(ad.instantiate_zeros, (scaled, d_slope, d_offset))
    k = d_slope / slope
    h = d_offset - k * offset
    d_residual = None if is_zero(d_residual) else d_residual
    of = _Constants(activation, params)
    # The very array that is kept, which the next layer then keeps too.
    return [y], [_outer(of, residual, d_residual, y, scaled, k, h)]


finish = Op(
    "finish_by_output",
    ("y", "carried", "residual", "slope", "offset", "slope_of_y", "offset_of_y"),
    lambda kernels: lambda y, *_, **__: y,
    has_loops=False,
)
finish.define_derivatives(_finish_jvp)


class _Constants(NamedTuple):
    activation: Callable | None
    params: dict


def _sums(of: _Constants, residual, where, dx, y, bias, gain):
    """gain dx, and the sums of dx and of dx (z - bias), z being y / f' - residual."""
    if residual is None and of.activation is None:
        return calculus.sums(dx, y, bias, gain, where, **of.params)
    zero = jnp.zeros_like(bias)
    other = y if residual is None else residual
    dz, s, r = calculus.sums(dx, other, zero, gain, where, **of.params)
    back = _gated(of, dx, y, _inverse(negative_slope(of.activation)))
    _, t = calculus.sums(back, y, zero, None, where, **of.params)
    t = t - bias * s
    return dz, s, t if residual is None else t - r


def _outer(of: _Constants, residual, d_residual, y, dz, k, h) -> Array:
    """f' (dz + h - k residual + d_residual) + k y."""
    zero = jnp.zeros_like(k)
    if residual is None and of.activation is None:
        return calculus.expand(dz, None, k, h, y, zero, None, **of.params)[0]
    other, by = (y, zero) if residual is None else (residual, -k)
    (dz,) = calculus.expand(dz, None, by, h, other, zero, None, **of.params)
    dz = dz if d_residual is None else dz + d_residual
    dy = _gated(of, dz, y, of.activation)
    return calculus.expand(dy, None, k, zero, y, zero, None, **of.params)[0]


def _gated(of: _Constants, values: Array, y: Array, function: Callable | None) -> Array:
    """`values` times the derivative of `function`, which depends on the sign of y."""
    if of.activation is None:
        return values
    zero = jnp.zeros([y.shape[axis] for axis in of.params["axes"]], statistics_type(y))
    line = (zero, jnp.ones_like(zero), zero, None)
    return calculus.gate(values, y, *line, activation=function, **of.params)[0]


@functools.cache
def _inverse(slope: float) -> Callable:
    return functools.partial(jax.nn.leaky_relu, negative_slope=1 / slope)
