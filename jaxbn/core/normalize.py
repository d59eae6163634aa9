"""The elementwise stage: normalize, scale, shift, add, activate."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends import dispatch
from jaxbn.backends.xla import along
from jaxbn.core import calculus, checks, options, values
from jaxbn.core.activation import split
from jaxbn.core.affine import affine, widened
from jaxbn.core.records import NOT_NEGATIVE, record
from jaxbn.core.types import Activation, BatchNormState


def normalize(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Normalizes `x` with given statistics.

        y = activation((x - mean) / sqrt(var + epsilon) * scale + bias + residual)

    computed in at least float32 and rounded once, to the type of `x` (Ioffe and
    Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167).
    Differentiable in every array argument.

    Args:
        x: any rank; float16, bfloat16, float32, float64 or complex.
        mean: the shape of the feature axes.
        var: the same shape; the biased variance, or whichever is meant.
        scale: the same shape, or with axes of the batch, see `jaxbn.batch_norm`.
            Default: one.
        bias: such a shape. Default: zero.
        axis: the feature axis, or a tuple of them.
        epsilon: added to the variance, > 0; a Python number.
        activation: "relu", "relu6", "silu", "gelu", "leaky_relu", an elementwise
            function or None. A function may close over traced arrays, say a learned
            slope; it then follows as a step of its own, after y has been rounded.
        residual: the shape of `x`; added before the activation.
        implementation: "xla", "native", or None for the fastest that is right.

    Returns:
        y, with the shape and type of `x`.

    Raises:
        ValueError: if a shape, `axis`, `epsilon` or `activation` is invalid, or a known
            variance is negative.
        TypeError: if `x` is an integer array.

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> jaxbn.normalize(x, jnp.array([2.0]), jnp.array([1.0])).round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    hint = "It is a mean of squares."
    mean, var = values.array("mean", mean), values.array("var", var)
    options.numbers("var", var, *NOT_NEGATIVE, hint=hint)
    return normalized(
        x,
        checks.vector("mean", mean, x, axes),
        checks.vector("var", var, x, axes),
        scale,
        bias,
        axes=axes,
        epsilon=epsilon,
        activation=activation,
        residual=residual,
        implementation=implementation,
    )


def normalized(
    x,
    mean,
    var,
    scale,
    bias,
    *,
    axes,
    epsilon,
    activation,
    residual,
    implementation,
) -> Array:
    """`normalize` with an array `x`, its feature axes and statistics that fit."""
    scale, bias, wide = affine(scale, bias, x, axes)
    slope = lax.rsqrt(var + options.epsilon(epsilon))
    if wide != axes:
        mean, slope = (widened(v, x, axes, wide) for v in (mean, slope))
    slope = slope if scale is None else slope * scale
    return apply(
        x,
        mean,
        slope,
        jnp.zeros_like(slope) if bias is None else bias,
        checks.residual(residual, x),
        axes=wide,
        activation=activation,
        implementation=dispatch.choose(implementation),
    )


def batch_norm_inference(
    x: Array,
    state: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Normalizes `x` with running statistics, as at evaluation.

    Args:
        x: any rank; float16, bfloat16, float32, float64 or complex.
        state: from `init_state`, `batch_norm` or `update`. Constants: no gradient.
        scale, bias, axis, epsilon, activation, residual, implementation: as in
            `jaxbn.normalize`.

    Returns:
        y, with the shape and type of `x`. The running mean is never rounded to it.

    Raises:
        ValueError: if a shape, `axis`, `epsilon` or `activation` is invalid, or a known
            statistic is impossible, as a variance below zero or a NaN.
        TypeError: if `x` is an integer array or `state` no BatchNormState.

    Example:
        >>> jaxbn.batch_norm_inference(jnp.ones((1, 2)), jaxbn.init_state(2)).round(3)
        Array([[1., 1.]], dtype=float32)
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    mean, var, _ = checks.statistics(record("state", state), x, axes)
    return normalized(
        x,
        mean,
        var,
        scale,
        bias,
        axes=axes,
        epsilon=epsilon,
        activation=activation,
        residual=residual,
        implementation=implementation,
    )


def apply(
    x,
    center,
    slope,
    offset,
    residual,
    *,
    axes,
    activation,
    implementation,
) -> Array:
    """activation(slope * (x - center) + offset + residual) on checked arguments."""
    inside, after = split(activation, x)
    if jnp.iscomplexobj(x):
        distance = x - along(center, x, axes)
        y = distance * along(slope, x, axes) + along(offset, x, axes)
        y = y if residual is None else y + residual
        return y if after is None else after(y)
    (y,) = calculus.expand(
        residual,
        None,
        slope,
        offset,
        x,
        center,
        None,
        axes=axes,
        activation=inside,
        implementation=implementation,
    )
    return y if after is None else after(y)
