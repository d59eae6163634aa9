"""Batch renormalization: training activations that depend on running statistics.

Bounds that follow the paper's schedule are in `jaxbn.variants.renorm_schedule`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, export, lax

from jaxbn.backends import dispatch
from jaxbn.backends.contract import without_nonfinite
from jaxbn.core import checks, layers, options, placement, weighting
from jaxbn.core.moments import group_of, local_moments, shared_moments
from jaxbn.core.normalize import apply, batch_norm_inference
from jaxbn.core.records import COUNT, FINITE, STATE, Kind, Rule, record
from jaxbn.core.state import Average, average_of, weight_of_new, where_counted
from jaxbn.core.types import Activation, AxisGroups, AxisName, BatchNormState


class RenormState(NamedTuple):
    """Running statistics of batch renormalization, which tracks sigma, not its square.

    Attributes:
        mean: running mean; the shape of the feature axes, float32.
        sigma: running sqrt(variance + epsilon); same shape, float32.
        count: number of updates each channel has had; same shape, float32.
    """

    mean: Array
    sigma: Array
    count: Array


export.register_namedtuple_serialization(
    RenormState, serialized_name="jaxbn.RenormState"
)


def init_renorm_state(num_features: int | Sequence[int]) -> RenormState:
    """Mean 0, sigma 1, count 0, in float32.

    Args:
        num_features: number of channels, or the sizes of several feature axes.

    Example:
        >>> init_renorm_state(2).sigma
        Array([1., 1.], dtype=float32)
    """
    shape = options.sizes("num_features", num_features)
    mean, sigma = jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32)
    return RenormState(mean, sigma, jnp.zeros_like(mean))


def batch_renorm(
    x: Array,
    state: RenormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    r_max: float | Array,
    d_max: float | Array,
    axis: int | Sequence[int] = -1,
    axis_name: AxisName | None = None,
    axis_groups: AxisGroups | None = None,
    where: Array | None = None,
    weights: Array | None = None,
    momentum: float | Array | None = 0.99,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
    debias: bool = True,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Array, RenormState]:
    """Normalizes `x`, corrected towards the running statistics within bounds.

        y = ((x - mean_B) / sigma_B * r + d) * scale + bias
        r = clip(sigma_B / sigma, 1 / r_max, r_max)
        d = clip((mean_B - mean) / sigma, -d_max, d_max)

    with sigma_B = sqrt(var_B + epsilon), and r and d constant in the derivative. Where
    neither is clipped, y is what evaluation gives. Then mean and sigma move towards
    those of the batch, by (1 - momentum) without `debias`. The derivative is that of
    the stages one after the other: exact to every order, from `x` and vectors alone,
    with more passes over memory than that of `jaxbn.batch_norm`.

    Args:
        x: a batch of any rank; float16, bfloat16, float32 or float64.
        state: running statistics, equal on all members of `axis_name`.
        scale, bias: the shape of the feature axes. Default: one and zero.
        r_max: at least 1; may be traced. 1 with `d_max=0` is batch normalization.
        d_max: at least 0; may be traced.
        momentum, debias, unbiased, skip_nonfinite: as in `jaxbn.update`, for sigma in
            place of the variance.
        axis, axis_name, axis_groups, where, weights: as in `jaxbn.batch_norm`.
        epsilon, activation, residual, implementation: as in `jaxbn.batch_norm`.

    Returns:
        y, with the shape and type of `x`, and the state for the next call. Channels
        without a valid value use and keep the running statistics.

    Raises:
        ValueError: if a shape or number is invalid.
        TypeError: if `x` is not floating point.

    Reference:
        Ioffe, Batch Renormalization, 2017, Algorithm 1.
        https://arxiv.org/abs/1702.03275

    Example:
        >>> x, state = jnp.array([[1.0], [3.0]]), init_renorm_state(1)
        >>> y, _ = batch_renorm(x, state, r_max=3.0, d_max=5.0)
        >>> jnp.allclose(y, x)  # Within the bounds, with running mean 0 and sigma 1.
        Array(True, dtype=bool)
    """
    x = _real(checks.array(x))
    axes = checks.feature_axes(x, axis)
    where = weighting.counted(where, weights, x)
    if where is not None:
        x = without_nonfinite(x, where)
    members = group_of(axis_name, axis_groups)
    how = average_of(momentum, debias, unbiased, skip_nonfinite)
    state = record("state", state, _STATE)
    params = {"axes": axes, "implementation": dispatch.choose(implementation)}
    floor = options.epsilon(epsilon)
    old = checks.statistics(state, x, axes)
    batch = shared_moments(local_moments(x, where, **params), members)
    seen = jnp.asarray(batch.count) > 0
    sigma = jnp.where(seen, 1 / batch.inverse(floor), old.sigma)
    distance = jnp.where(seen, (batch.center - old.mean) + batch.delta, 0)
    r, d = lax.stop_gradient(_correction(sigma, distance, old, r_max, d_max))
    scale = checks.vector("scale", scale, x, axes)
    bias = checks.vector("bias", bias, x, axes)
    gain = jnp.ones_like(r) if scale is None else scale
    slope = gain * r / sigma
    # The mean of the batch is center + delta; `apply` subtracts the center.
    delta = jnp.where(seen, batch.delta, 0)
    offset = gain * d - slope * delta
    y = apply(
        x,
        jnp.where(seen, batch.center, old.mean),
        slope,
        offset if bias is None else offset + bias,
        checks.residual(residual, x),
        activation=activation,
        **params,
    )
    if how.unbiased:  # one value tells no spread
        freedom = jnp.asarray(batch.count) - 1
        wider = 1 / batch._replace(count=freedom).inverse(floor)
        sigma = jnp.where(freedom > 0, wider, old.sigma)
    return y, _moved(state, distance, sigma, seen, how)


def batch_renorm_inference(
    x: Array,
    state: RenormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Normalizes with running statistics: (x - mean) / sigma * scale + bias.

    Args:
        x: any rank.
        state: from `batch_renorm`; epsilon is part of its sigma.
        scale, bias, axis, activation, residual, implementation: as in
            `jaxbn.batch_norm_inference`.

    Returns:
        y, with the shape and type of `x`.

    Example:
        >>> state = init_renorm_state(1)._replace(sigma=jnp.array([2.0]))
        >>> batch_renorm_inference(jnp.array([[4.0]]), state)
        Array([[2.]], dtype=float32)
    """
    epsilon = jnp.finfo(jnp.float32).tiny.item()
    state = record("state", state, _STATE)
    var = jnp.square(state.sigma)
    return batch_norm_inference(
        x,
        BatchNormState(state.mean, var, state.count),
        scale,
        bias,
        axis=axis,
        epsilon=epsilon,
        activation=activation,
        residual=residual,
        implementation=implementation,
    )


_STATE = Kind(
    RenormState,
    "Create one with `init_renorm_state(num_features)`.",
    {
        "mean": FINITE,
        "sigma": Rule(lambda v: np.isfinite(v) & (v > 0), "finite and positive"),
        "count": COUNT,
    },
    STATE.repair,
)


def _correction(sigma, distance, old: RenormState, r_max, d_max):
    kind = old.sigma.shape, old.sigma.dtype
    r_max = options.per_channel("r_max", layers.bound("r_max", r_max), *kind)
    d_max = options.per_channel("d_max", layers.bound("d_max", d_max), *kind)
    r = jnp.clip(sigma / old.sigma, 1 / r_max, r_max)
    return r, jnp.clip(distance / old.sigma, -d_max, d_max)


def _moved(state: RenormState, distance, sigma, seen, how: Average) -> RenormState:
    seen = where_counted(seen, how, distance, sigma)
    distance, sigma, old = placement.alike((distance, sigma, state))
    count = old.count + 1
    rate = weight_of_new(how, count.astype(sigma.dtype))
    mean, moved = old.mean + rate * distance, old.sigma + rate * (sigma - old.sigma)
    new = (
        jnp.where(seen, a.astype(b.dtype), b)
        for a, b in zip((mean, moved, count), old, strict=True)
    )
    cast = map(placement.like, new, state)
    return lax.stop_gradient(RenormState(*cast))


def _real(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"`x` must be real, got {x.dtype}. Use `jaxbn.batch_norm` for complex data."
        )
    return x
