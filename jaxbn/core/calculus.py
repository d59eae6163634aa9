"""The derivatives of the four primitives that every stage is written on.

`sums` and `expand` are linear and each the other's transpose, so a backward pass needs
no rule of its own: transposing a tangent written with them gives it. `moments` is the
reduction of the forward pass, `gate` the derivative of an activation. Their meaning is
given in `jaxbn.backends.contract`; an implementation lowers them and adds no rule.

The derivative of each primitive in its remaining operands is written with the
primitives themselves and lax, so derivatives of every order exist.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from jaxbn.backends import dispatch
from jaxbn.backends.contract import (
    Gate,
    counted,
    divisor,
    number_of,
    rows,
    statistics_type,
)
from jaxbn.core import placement
from jaxbn.core.primitives import (
    expand,
    gate,
    is_zero,
    line_of,
    moments,
    require_linear,
    saved,
    scale_by,
    spread,
    sums,
    total_of_weights,
    transposed_in_x,
    weighted_sums,
    zeros,
)

__all__ = ["count", "expand", "gate", "moments", "sums"]


def _total(terms):
    terms = [term for term in terms if term is not None]
    return sum(terms[1:], terms[0]) if terms else None


def count(x: Array, where: Array | None, axes: tuple[int, ...]) -> float | Array:
    """The number of values of each channel, or the sum of their weights.

    It is a Python float where shapes tell it.
    """
    over = rows(x, axes)
    if where is None:
        return number_of(x, over)
    wide = statistics_type(x)
    shared = number_of(x, [i for i in over if where.shape[i] == 1])
    seen = where.astype(wide).sum(over) * jnp.asarray(shared, wide)
    seen = jnp.broadcast_to(seen, tuple(x.shape[a] for a in axes))
    return placement.like(seen, x, axes)


def _moments_jvp(primals, tangents, *, axes, implementation):
    # With mean = center + delta and n = count, over the values that count:
    #   d mean = sum(dx) / n                 d m2 = 2 sum(dx (x - mean)) / unit^2
    # and with weights w, whose sum n is, where these sums are weighted, moreover
    #   d mean = sum(dw (x - mean)) / n      d m2 = sum(dw (x - mean)^2) / unit^2.
    # `center` may be any constant, so all of the change of the mean is in delta.
    x, where = primals
    dx, dw = tangents
    by = {"axes": axes, "implementation": implementation}
    center, delta, _, unit = out = moments(*primals, **by)
    if is_zero(dx) and is_zero(dw):
        return out, zeros(out)
    firsts, d_m2s = [], []
    if not is_zero(dx):
        total, moment = sums(dx, x, center, None, where, **by)
        firsts.append(total)
        d_m2s.append(2 * ((moment - delta * total) / unit) / unit)
    if not is_zero(dw):
        finite = jnp.where(jnp.isfinite(x), x, jnp.zeros((), x.dtype))
        first, second = weighted_sums(finite, center, dw, axes)
        more = count(x, dw, axes)
        firsts.append(first - delta * more)
        second = second - 2 * delta * first + jnp.square(delta) * more
        d_m2s.append((second / unit) / unit)
    d_delta = sum(firsts[1:], firsts[0]) / divisor(count(x, where, axes))
    return out, [*zeros([center]), d_delta, _total(d_m2s), *zeros([unit])]


def _sums_jvp(primals, tangents, *, gate=None, both=True, **params):
    del both  # the derivatives need more
    # With t = sum(a), m = sum(a (x - c)) and r = multiplier a:
    #   dt = sum(da),   dm = sum(da (x - c)) + sum(a dx) - t dc,
    #   dr = multiplier da + dmultiplier a,
    # and the two sums are linear in the weights, too.
    a, x, center, multiplier, where, *line = primals
    da, dx, d_center, d_multiplier, dw, *_ = tangents
    out = sums(*primals, gate=gate, **params)
    if gate is not None and not all(map(is_zero, tangents[1:])):
        return out, _derivative(_plain_sums(gate, params), primals, tangents)
    terms: list[list] = [[] for _ in out]
    if not is_zero(da):
        direct = sums(da, x, center, multiplier, where, *line, gate=gate, **params)
        terms = [[value] for value in direct]
    if not is_zero(dx):
        zero = jnp.zeros_like(center)
        part = sums(dx, a, zero, None, where, **params)
        terms[-1].append(part[-1])
    if not is_zero(d_center):
        terms[-1].append(-out[-2] * d_center)
    if not is_zero(dw):
        for term, change in zip(
            terms[-2:], sums(a, x, center, None, dw, **params), strict=True
        ):
            term.append(change)
    if not is_zero(d_multiplier):
        terms[0].append(spread(d_multiplier, a, params))
    changes = map(_total, terms)
    return out, [
        ad.Zero(jax.typeof(value)) if change is None else change
        for value, change in zip(out, changes, strict=True)
    ]


def _sums_transpose(
    cotangents, a, x, center, multiplier, where, *line, gate=None, both=True, **params
):
    del both
    # <ct_r, multiplier a> + <ct_t, sum(a)> + <ct_m, sum(a (x - c))>
    #   = <multiplier ct_r + ct_t + ct_m (x - c), a>, which `expand` computes.
    # A gate g keeps its part. "other": r = g multiplier a gives g multiplier ct_r, the
    # term of the other operand; "affine": the sums of g a give g times the affine term.
    total, moment = map(ad.instantiate_zeros, cotangents[-2:])
    if ad.is_undefined_primal(where):
        back = a * line_of(moment, total, x, center, params)
        return [*[None] * 4, total_of_weights(back, where.aval), None, None]
    assert ad.is_undefined_primal(a)
    scaled = cotangents[0] if multiplier is not None else None
    if is_zero(scaled):
        scaled = multiplier = None
        gate, line = _kept(gate, line, part="affine")
    affine = (moment, total, *saved(x, **params), center, where)
    back = expand(scaled, multiplier, *affine, *line, gate=gate, **params)
    return [*back, *[None] * 6]


def _kept(gate, line, *, part):
    """The gate and its vectors, or nothing if it is a factor of another part."""
    return (gate, line) if gate is None or gate.part == part else (None, (None, None))


def _expand_jvp(primals, tangents, *, activation=None, gate=None, **params):
    # With y = multiplier a + slope (x - c) + offset:
    #   dy = multiplier da + dslope (x - c) + doffset      (the same function)
    #        + slope dx - slope dc + dmultiplier a,
    # where weights are a factor of all but the first and the last term.
    if activation is not None:
        return _activated_jvp(primals, tangents, activation, params)
    a, multiplier, slope, offset, x, center, where, *line = primals
    da, d_multiplier, d_slope, d_offset, dx, d_center, dw, *_ = tangents
    out = expand(*primals, gate=gate, **params)
    others = (d_multiplier, *tangents[4:])
    if gate is not None and not all(map(is_zero, others)):
        return out, _derivative(_plain_expand(gate, params), primals, tangents)
    terms = []
    if not all(map(is_zero, (da, d_slope, d_offset))):
        da = None if is_zero(da) else da
        d_slope, d_offset = map(ad.instantiate_zeros, (d_slope, d_offset))
        keep = None if da is None else multiplier
        if da is None:
            gate, line = _kept(gate, line, part="affine")
        affine = (d_slope, d_offset, x, center, where)
        terms += expand(da, keep, *affine, *line, gate=gate, **params)
    zero = jnp.zeros_like(center)
    if not is_zero(dx):
        terms.append(scale_by(counted(dx, where), slope, params))
    if not is_zero(d_center):
        moved = (zero, -slope * d_center, x, center, where)
        terms += expand(None, None, *moved, **params)
    if not is_zero(dw):
        terms += expand(None, None, slope, offset, x, center, dw, **params)
    if not is_zero(d_multiplier):
        terms.append(spread(d_multiplier, a, params))
    return out, [_total(terms)] if terms else zeros(out)


def _activated_jvp(primals, tangents, activation, params):
    # y = activation(z), so dy = activation'(z) dz with dz the tangent of the plain sum.
    a, _, slope, offset, x, center, *_ = primals
    out = expand(*primals, activation=activation, **params)
    change = _expand_jvp(primals, tangents, **params)[1]
    if all(map(is_zero, change)):
        return out, change
    inputs = (x, center, slope, offset, a)
    return out, gate(*change, *inputs, activation=activation, **params)


def _expand_transpose(
    cotangents, a, multiplier, slope, offset, x, center, where, *line, gate=None,
    activation=None, **params,
):  # fmt: skip
    require_linear(activation)
    # <ct, multiplier a + slope (x - c) + offset>
    #   = <multiplier ct, a> + <sum(ct (x - c)), slope> + <sum(ct), offset>: `sums`.
    # A gate keeps its part here too: g multiplier ct, or the sums of g ct.
    (ct,) = cotangents
    if ad.is_undefined_primal(where):
        back = ct * line_of(slope, offset, x, center, params)
        return [*[None] * 6, total_of_weights(back, where.aval), None, None]
    if multiplier is None and any(map(ad.is_undefined_primal, (x, center))):
        return transposed_in_x(ct, (a, slope, offset, x, center), where, params)
    wants_a = a is not None and ad.is_undefined_primal(a)
    wants = [ad.is_undefined_primal(v) for v in (slope, offset)]
    gates_a = gate is not None and gate.part == "other"
    if not any(wants) and not gates_a:
        back = ct if multiplier is None else scale_by(ct, multiplier, params)
        return [back, *[None] * 8]
    keep = multiplier if wants_a else None
    if wants_a and gates_a and multiplier is None:
        keep = jnp.ones_like(center)
    if keep is None:
        gate, line = _kept(gate, line, part="affine")
    given = (ct, *saved(x, **params), center, keep, where, *line)
    more = {} if all(wants) else {"both": False}
    *scaled, total, moment = sums(*given, gate=gate, **more, **params)
    back = (scaled[0] if scaled else ct) if wants_a else None
    d_slope, d_offset = (
        v if w else None for v, w in zip((moment, total), wants, strict=True)
    )
    return [back, None, d_slope, d_offset, *[None] * 5]


def _gate_jvp(primals, tangents, *, implementation, **params):
    # f'(z) dy is linear in dy. Its derivative by z, f''(z) dy dz, is left to JAX.
    dy, *inputs = primals
    ddy, *d_inputs = tangents
    out = gate(*primals, implementation=implementation, **params)
    terms = []
    if not is_zero(ddy):
        terms += gate(ddy, *inputs, implementation=implementation, **params)
    if not all(map(is_zero, d_inputs)):
        plain = functools.partial(dispatch.kernels().gate, dy, **params)
        terms.append(_derivative(plain, inputs, d_inputs))
    return out, [_total(terms)] if terms else zeros(out)


def _gate_transpose(cotangents, dy, x, *vectors_and_residual, **params):
    # A factor for each element is its own transpose.
    assert ad.is_undefined_primal(dy)
    *vectors, residual = vectors_and_residual
    # Everywhere: XLA would keep the derivative, or what it is computed from.
    x, residual = lax.optimization_barrier((x, residual))
    return [*gate(*cotangents, x, *vectors, residual, **params), *[None] * 5]


# `sums` and `expand` with a gate, written without one: for derivatives. Where only the
# operands move in which they are linear, a gated primitive is its own derivative. Where
# others move, that of these compositions takes its place.


def _derivative(function: Callable, primals: Sequence, tangents: Sequence) -> Any:
    """The tangent of `function`, in those operands whose tangents are not zero."""
    moving = [i for i, tangent in enumerate(tangents) if not is_zero(tangent)]

    def at(*values):
        changed = list(primals)
        for i, value in zip(moving, values, strict=True):
            changed[i] = value
        return function(*changed)

    return jax.jvp(at, [primals[i] for i in moving], [tangents[i] for i in moving])[1]


def _plain_sums(of_gate: Gate, params: dict) -> Callable:
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


def _plain_expand(of_gate: Gate, params: dict) -> Callable:
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


moments.define_derivatives(_moments_jvp)
sums.define_derivatives(_sums_jvp, _sums_transpose)
expand.define_derivatives(_expand_jvp, _expand_transpose)
gate.define_derivatives(_gate_jvp, _gate_transpose)
