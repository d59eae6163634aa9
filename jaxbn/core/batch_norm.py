"""Batch normalization in training: check, moments, sync, normalize, and update beside.

The derivative is written here once. It is exact for every order and needs `x` and
vectors only; see `_tangent`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxbn.backends import dispatch
from jaxbn.backends.contract import Gate
from jaxbn.core import calculus, checks, placement, sync
from jaxbn.core import residuals as keep
from jaxbn.core.moments import (
    Centered,
    group_of,
    known_count,
    local_moments,
    public,
    shared_moments,
)
from jaxbn.core.normalize import apply, split_activation
from jaxbn.core.state import update
from jaxbn.core.types import Activation, AxisGroups, AxisName, BatchNormState, Moments


class _Layer(NamedTuple):
    """What is constant in the compiled program."""

    axes: tuple[int, ...]
    members: sync.Members | None
    epsilon: float
    activation: Callable[[Array], Array] | None
    implementation: str
    residuals: keep.Residuals

    @property
    def kernel(self):
        return {"axes": self.axes, "implementation": self.implementation}


class _Inputs(NamedTuple):
    """What may change from call to call; None where absent."""

    x: Array
    scale: Array | None
    bias: Array | None
    residual: Array | None
    where: Array | None
    state: BatchNormState


def batch_norm(
    x: Array,
    state: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    axis_name: AxisName | None = None,
    axis_groups: AxisGroups | None = None,
    where: Array | None = None,
    momentum: float | Array | None = 0.99,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    residuals: keep.Residuals = "input",
    implementation: str | None = None,
    debias: bool = True,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Array, BatchNormState]:
    """Normalizes `x` with the statistics of this batch and updates the running ones.

    For every channel c,

        y_c = activation((x_c - mean_c) / sqrt(var_c + epsilon) * scale_c + bias_c
                         + residual_c)

    where mean and biased variance run over all other axes, over the positions where
    `where` is true, and over the members of `axis_name`. Masked positions of `x` are
    normalized too, but count in no statistic, whatever they hold. A channel without
    any valid value is normalized with the running statistics.

    Args:
        x: a batch of any rank >= 1; float16, bfloat16, float32, float64 or complex.
        state: running statistics, equal on all members of `axis_name`.
        scale: multiplies each channel; the shape of the feature axes. Default: one.
        bias: added to each channel; the same shape. Default: zero.
        axis: the feature axis, or a tuple of them.
        axis_name: mesh or vmap axes to share statistics over, inside `jax.vmap`,
            `jax.pmap` or `jax.shard_map`. Under plain `jax.jit` it is not needed: the
            statistics cover the global batch however it is sharded.
        axis_groups: positions along `axis_name` that share statistics, for example
            [[0, 1], [2, 3]]. Default: all of them.
        where: boolean mask that broadcasts to the shape of `x`. Default: all true.
        momentum: weight of the old running value, in [0, 1); may be traced. None
            averages all batches equally.
        epsilon: added to the variance, > 0; a Python number.
        activation: "relu", "relu6", "silu", "gelu", "leaky_relu", an elementwise
            function or None. A function may close over traced arrays, say a learned
            slope; it then follows as a step of its own, after y has been rounded.
        residual: the shape of `x`; added before the activation.
        residuals: what is kept for the backward pass. "input": `x`. "output": y alone,
            which the next layer keeps anyway; the activation must have an inverse, and
            a |scale| below 2^-10 counts as 2^-10. "recompute": `x`, and y is computed
            again, also for the next layer, under `jaxbn.recompute_policy`.
        implementation: "xla", "native", or None for the fastest that is right.
        debias, unbiased, skip_nonfinite: how the running statistics are updated, see
            `jaxbn.update`.

    Returns:
        y, with the shape and type of `x`, and the state for the next call.

    Raises:
        ValueError: if a shape, `axis`, `axis_name`, `axis_groups`, `momentum`,
            `epsilon`, `activation` or `implementation` is invalid, or with `unbiased`
            there is one value per channel.
        TypeError: if `x` is an integer array, `where` is not boolean, or `state` is no
            BatchNormState.
        NotImplementedError: if `residuals` is "output" and `activation` neither None
            nor "leaky_relu", also as functools.partial with `negative_slope`.

    Reference:
        Ioffe and Szegedy, Batch Normalization, 2015, Algorithm 1.
        https://arxiv.org/abs/1502.03167

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> y, state = jaxbn.batch_norm(x, jaxbn.init_state(1))
        >>> y.round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    momentum = checks.momentum(momentum, debias=debias)
    function = checks.activation(activation)
    mode = keep.check(residuals, function, x)
    function, after = (
        (function, None) if jnp.iscomplexobj(x) else split_activation(function, x)
    )
    layer = _Layer(
        axes,
        group_of(axis_name, axis_groups),
        checks.epsilon(epsilon),
        function,
        dispatch.choose(implementation, x),
        mode,
    )
    where = checks.mask(where, x)
    checks.enough_values(known_count(x, where, layer.members, axes), unbiased=unbiased)
    inputs = _Inputs(
        x,
        checks.vector("scale", scale, x, axes),
        checks.vector("bias", bias, x, axes),
        checks.residual(residual, x),
        where,
        lax.stop_gradient(checks.state(state, x, axes)),
    )
    if residuals == "output":
        inputs = inputs._replace(scale=keep.invertible(inputs.scale))
    normalized = _composed if jnp.iscomplexobj(x) else _normalized
    y, batch = normalized(layer, jax.tree.map(placement.of_jax, inputs))
    y = y if after is None else after(y)
    new_state = update(
        state,
        batch,
        momentum=momentum,
        debias=debias,
        unbiased=unbiased,
        skip_nonfinite=skip_nonfinite,
    )
    return y, new_state


def _without_masked_nonfinite(inputs: _Inputs) -> _Inputs:
    """Zero instead of NaN or infinity where masked: 0 * NaN would reach gradients."""
    x, where = inputs.x, inputs.where
    if where is None:
        return inputs
    finite = where | jnp.isfinite(x)
    return inputs._replace(x=jnp.where(finite, x, jnp.zeros((), x.dtype)))


def _statistics(layer: _Layer, inputs: _Inputs) -> Centered:
    """The moments of the batch, about running means as first guess."""
    shift = sync.common(inputs.state.mean, layer.members)
    local = local_moments(
        inputs.x, shift, inputs.where, floor=layer.epsilon, **layer.kernel
    )
    return shared_moments(local, shift, layer.members, floor=layer.epsilon)


class _Coefficients(NamedTuple):
    """What a channel is normalized with: slope * (x - center) + offset.

    The mean is center + delta, `inverse` is 1 / sqrt(variance + epsilon).
    """

    center: Array
    delta: Array
    inverse: Array
    slope: Array
    offset: Array


def _coefficients(layer: _Layer, inputs: _Inputs, batch: Centered) -> _Coefficients:
    _, center, delta, _ = batch
    var = batch.m2 / jnp.maximum(batch.count, 1)
    if not isinstance(batch.count, int) or batch.count == 0:
        seen = jnp.asarray(batch.count) > 0
        center = jnp.where(seen, center, inputs.state.mean)
        delta = jnp.where(seen, delta, 0)
        var = jnp.where(seen, var, inputs.state.var)
    inverse = lax.rsqrt(var + layer.epsilon)
    slope = inverse if inputs.scale is None else inverse * inputs.scale
    offset = -slope * delta
    offset = offset if inputs.bias is None else offset + inputs.bias
    return _Coefficients(center, delta, inverse, slope, offset)


def _apply(layer: _Layer, inputs: _Inputs, by: _Coefficients) -> Array:
    return apply(
        inputs.x,
        by.center,
        by.slope,
        by.offset,
        inputs.residual,
        activation=layer.activation,
        expand=keep.expand(layer.residuals),
        **layer.kernel,
    )


def _composed(layer: _Layer, inputs: _Inputs) -> tuple[Array, Moments]:
    """y and the moments of the batch, differentiated stage by stage."""
    inputs = _without_masked_nonfinite(inputs)
    batch = _statistics(layer, inputs)
    y = _apply(layer, inputs, _coefficients(layer, inputs, batch))
    return y, public(batch)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalized(layer: _Layer, inputs: _Inputs) -> tuple[Array, Moments]:
    """The same with the derivative of the whole; the moments are constants in it."""
    return _composed(layer, inputs)


@functools.partial(_normalized.defjvp, symbolic_zeros=True)
def _tangent(layer, primals, tangents):
    # With m = mean, r = 1 / sqrt(var + epsilon), g = scale, and sums over the n values
    # of all members that count,
    #   dy = g r (dx - S0 - r^2 (x - m) S1) + dg r (x - m) + db,
    #   S0 = sum(dx) / n,   S1 = sum(dx (x - m)) / n.
    # Its transpose is the backward pass: one reduction over (dy, x), one all-reduce,
    # one elementwise map.
    # Inside the rule, so that only one array of the size of x is kept.
    inputs = _without_masked_nonfinite(*primals)
    change = _without_symbolic_zeros(*tangents)
    batch = _statistics(layer, inputs)
    by = _coefficients(layer, inputs, batch)
    y, moments = _apply(layer, inputs, by), public(batch)
    constants = jax.tree.map(jnp.zeros_like, moments)
    if layer.residuals == "output":
        found = y, by.inverse, batch.count
        return (y, moments), (keep.tangent(layer, inputs, change, *found), constants)
    x, dz = inputs.x, None
    # The gate of the activation rides on the two maps of the tangent, so that in the
    # backward pass it is a factor of the cotangent and never stored. With a residual
    # it has to be: it is the cotangent of the residual.
    rides = layer.activation is not None and inputs.residual is None
    line = (by.slope, by.offset) if rides else ()
    gate = functools.partial(Gate, activation=layer.activation) if rides else _no_gate
    d_slope, d_offset = jnp.zeros_like(by.slope), jnp.zeros_like(by.slope)
    if change.x is not None:
        dz, s0, s1 = calculus.sums(
            change.x, x, by.center, by.slope, inputs.where, *line,
            gate=gate("other"), **layer.kernel,
        )  # fmt: skip
        s0, s1 = sync.totals((s0, s1), layer.members)
        n = jnp.maximum(batch.count, 1)
        s1 = s1 - by.delta * s0
        d_slope, d_offset = -by.slope * by.inverse**2 * s1 / n, -by.slope * s0 / n
    if change.scale is not None:
        d_slope = d_slope + change.scale * by.inverse
    if change.bias is not None:
        d_offset = d_offset + change.bias
    both = keep.cast_together((d_slope, d_offset - d_slope * by.delta), x)
    (dz,) = calculus.expand(
        dz, None, *both, x, by.center, None, *line, gate=gate("affine"), **layer.kernel
    )
    if change.residual is not None:
        dz = dz + change.residual
    if layer.activation is not None and not rides:
        inputs_of_gate = (x, by.center, by.slope, by.offset, inputs.residual)
        (dz,) = calculus.gate(
            dz, *inputs_of_gate, activation=layer.activation, **layer.kernel
        )
    return (y, moments), (dz, constants)


def _no_gate(part: str) -> None:
    """In place of Gate where there is none."""


def _without_symbolic_zeros(change: _Inputs) -> _Inputs:
    """None in place of every tangent that is known to be zero."""
    zeros = [n for n, t in change._asdict().items() if isinstance(t, SymbolicZero)]
    return change._replace(**dict.fromkeys(zeros))
