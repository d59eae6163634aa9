"""Evaluation with a share of each example's own statistics."""

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import divisor
from jaxbn.core import checks, options, weighting
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.moments import moments
from jaxbn.core.normalize import normalized
from jaxbn.core.records import record
from jaxbn.core.types import Activation, BatchNormState
from jaxbn.core.values import shown

_POINTS, _ROUNDS = 17, 4


def eval_blend(
    x: Array,
    state: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    alpha: float | Array,
    axis: int = -1,
    where: Array | None = None,
    weights: Array | None = None,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Normalizes each example with running statistics and, by `alpha`, its own.

    At training an example is part of the batch it is normalized with; at evaluation it
    is not, which `alpha` makes up for. With running mean m and variance v, and those of
    example i, m_i and v_i,

        mean = (1 - alpha) m + alpha m_i
        var  = (1 - alpha) v + alpha v_i + alpha (1 - alpha) (m_i - m)^2

    the mean and variance of the mixture: var = E[x^2] - mean^2 with both expectations
    mixed, written so that nothing cancels.

    Args:
        x: a batch whose first axis lists the examples.
        state: running statistics.
        scale, bias: shape (C,). Default: one and zero.
        alpha: weight of the example's own statistics, in [0, 1]; may be traced, and of
            shape (C,). 0 is `jaxbn.batch_norm_inference`. See `fit_eval_blend`.
        axis: the feature axis; not the first one.
        where: boolean mask of valid positions; an example without any uses the running
            statistics.
        weights, epsilon, activation, residual, implementation: as in
            `jaxbn.batch_norm`.

    Returns:
        y, with the shape and type of `x`. The running statistics are constants.

    Raises:
        ValueError: if `alpha` is not in [0, 1] or a shape is invalid.

    Reference:
        Summers and Dinneen, Four things everyone should know to improve batch
        normalization, 2020 (inference example weighing).
        https://arxiv.org/abs/1906.03548

    Example:
        >>> x, state = jnp.array([[[1.0], [3.0]]]), jaxbn.init_state(1)
        >>> eval_blend(x, state, alpha=0.5).ravel().round(3)
        Array([0.   , 1.414], dtype=float32)
    """
    x = checks.array(x)
    feature = checks.one_feature_axis(x, axis)
    axes = (0, feature)
    mean, var, _ = checks.statistics(record("state", state), x, (feature,))
    own = moments(
        x,
        axis=axes,
        where=where,
        weights=weights,
        implementation=implementation,
    )
    share = jnp.where(own.count > 0, _weight(alpha, own.m2), 0)
    mean, var = (jnp.broadcast_to(v, own.m2.shape) for v in (mean, var))
    distance = own.mean - mean
    own_var = own.m2 / divisor(own.count)
    between = share * (1 - share) * jnp.square(distance)
    return normalized(
        x,
        mean + share * distance,
        (1 - share) * var + share * own_var + between,
        _each("scale", scale, x, feature),
        _each("bias", bias, x, feature),
        axes=axes,
        epsilon=epsilon,
        activation=activation,
        residual=residual,
        implementation=implementation,
    )


def fit_eval_blend(
    x: Array,
    state: BatchNormState,
    *,
    axis: int = -1,
    where: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """The weight with which evaluation comes closest to training, for one layer.

    Minimizes over alpha in [0, 1], on a grid that is refined around its best point,

        mean |eval_blend(x, alpha) - batch_norm(x)|^2

    over the valid positions of all batches, before scale and bias. It matches the
    normalized activations of training, the aim of EvalNorm, by its own search.

    Args:
        x: inputs of the layer in training, batches on the first axis and examples on
            the second, of the batch size of training.
        state: the running statistics that evaluation uses.
        axis: the feature axis, of one batch if negative or counted in `x` if not.
        where: boolean mask that broadcasts to the shape of `x`.
        epsilon: of the layer.

    Returns:
        alpha, a scalar, found to about 1e-4.

    Raises:
        ValueError: if `x` has no axes for batches and examples.

    Reference:
        Singh and Shrivastava, EvalNorm: estimating batch normalization statistics for
        evaluation, 2019. https://arxiv.org/abs/1904.06031

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (50, 2, 8, 3))
        >>> bool(fit_eval_blend(x, jaxbn.init_state(3)) > 0.2)
        True
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    if x.ndim < 3 or len(axes) != 1 or axes[0] < 2:
        raise ValueError(
            "`axis` must not be the first axis of a batch, behind the axis of batches "
            f"of `x` with shape {x.shape}, got {shown(axis)}. Stack the inputs of "
            "several steps: shape (batches, examples, ..., channels)."
        )
    state = record("state", state)
    checks.statistics(state, x, axes)  # here, where its values are known
    valid = jnp.ones((1,) * x.ndim, bool) if where is None else weighting.mask(where, x)
    valid = jnp.broadcast_to(valid, x.shape)
    feature = axes[0] - 1

    def difference(alpha, batch):
        x, where = batch
        kind = {"axis": feature, "where": where, "epsilon": epsilon}
        trained, _ = batch_norm(x, state, **kind)
        gap = eval_blend(x, state, alpha=alpha, **kind) - trained
        return jnp.sum(jnp.square(gap.astype(jnp.float32)), where=where)

    def loss(alpha):
        return lax.map(lambda batch: difference(alpha, batch), (x, valid)).sum()

    def refine(bounds, _):
        low, high = bounds
        points = jnp.linspace(low, high, _POINTS)
        best = points[jnp.argmin(lax.map(loss, points))]
        step = (high - low) / (_POINTS - 1)
        return (jnp.maximum(best - step, 0.0), jnp.minimum(best + step, 1.0)), best

    start = (jnp.zeros(()), jnp.ones(()))
    return lax.stop_gradient(lax.scan(refine, start, length=_ROUNDS)[1][-1])


def _each(name: str, vector: Array | None, x: Array, feature: int) -> Array | None:
    """A vector of shape (C,) for each example, in the type of statistics."""
    vector = checks.vector(name, vector, x, (feature,))
    if vector is None:
        return None
    return jnp.broadcast_to(vector, (x.shape[0], *vector.shape))


def _weight(alpha: float | Array, like: Array) -> Array:
    weight = options.share("alpha", alpha)
    weight = options.per_channel("alpha", weight, like.shape[1:], like.dtype)
    return jnp.broadcast_to(weight, like.shape)
