"""The elementwise stage: normalize, scale, shift, add, activate."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from jaxbn.backends import dispatch
from jaxbn.backends.contract import statistics_type
from jaxbn.backends.xla import along
from jaxbn.core import calculus, checks
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
        scale: the same shape. Default: one.
        bias: the same shape. Default: zero.
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
        ValueError: if a shape, `axis`, `epsilon` or `activation` is invalid.
        TypeError: if `x` is an integer array.

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> jaxbn.normalize(x, jnp.array([2.0]), jnp.array([1.0])).round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    mean = checks.vector("mean", mean, x, axes)
    var = checks.vector("var", var, x, axes)
    scale = checks.vector("scale", scale, x, axes)
    bias = checks.vector("bias", bias, x, axes)
    slope = lax.rsqrt(var + checks.epsilon(epsilon))
    slope = slope if scale is None else slope * scale
    return apply(
        x,
        mean,
        slope,
        jnp.zeros_like(slope) if bias is None else bias,
        checks.residual(residual, x),
        axes=axes,
        activation=checks.activation(activation),
        implementation=dispatch.choose(implementation, x),
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
        ValueError: if a shape, `axis`, `epsilon` or `activation` is invalid.
        TypeError: if `x` is an integer array or `state` no BatchNormState.

    Example:
        >>> jaxbn.batch_norm_inference(jnp.ones((1, 2)), jaxbn.init_state(2)).round(3)
        Array([[1., 1.]], dtype=float32)
    """
    x = checks.array(x)
    state = checks.state(state, x, checks.feature_axes(x, axis))
    return normalize(
        x,
        lax.stop_gradient(state.mean),
        lax.stop_gradient(state.var),
        scale,
        bias,
        axis=axis,
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
    if jnp.iscomplexobj(x):
        distance = x - along(center, x, axes)
        y = distance * along(slope, x, axes) + along(offset, x, axes)
        y = y if residual is None else y + residual
        return (y if activation is None else activation(y)).astype(x.dtype)
    inside, after = split_activation(activation, x)
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


def split_activation(activation, x: Array) -> tuple[Any, Any]:
    """The part of the activation inside of the kernels and the part after them.

    A kernel is compiled by itself, with its activation as a hashable constant, and
    differentiates it in forward mode. What closes over a traced array, as a learned
    slope, or has a rule for reverse mode alone, as a straight-through estimator,
    follows as a function of its own.
    """
    if checks.is_named(activation):
        return activation, None

    def after(y):
        return activation(y.astype(statistics_type(y))).astype(y.dtype)

    constants = jax.make_jaxpr(after)(x).consts
    fixed = not any(isinstance(value, Tracer) for value in constants)
    if isinstance(activation, Hashable) and fixed and _has_tangent(after, x):
        return activation, None
    return None, after


def _has_tangent(function: Callable, x: Array) -> bool:
    """Whether a function has a derivative in forward mode too."""
    text = str(jax.make_jaxpr(lambda x: jax.jvp(function, (x,), (x,)))(x))
    return "custom_lin" not in text  # stands for a rule that only reverse mode can run
