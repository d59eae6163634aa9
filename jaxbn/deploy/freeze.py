"""Batch normalization as a fixed affine map."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends import dispatch
from jaxbn.core import checks, options, values
from jaxbn.core.normalize import apply
from jaxbn.core.records import record
from jaxbn.core.types import Activation, BatchNormState


class Frozen(NamedTuple):
    """slope * (x - center) + offset: what a frozen layer does to each channel.

    Attributes:
        center: the running mean; the shape of the feature axes, at least float32.
        slope: scale / sqrt(var + epsilon), the same shape.
        offset: the bias, the same shape.
    """

    center: Array
    slope: Array
    offset: Array

    def __call__(
        self,
        x: Array,
        *,
        axis: int | Sequence[int] = -1,
        activation: Activation = None,
        residual: Array | None = None,
        implementation: str | None = None,
    ) -> Array:
        """Applies the map; arguments and result are those of `jaxbn.normalize`."""
        x = checks.array(x)
        axes = checks.feature_axes(x, axis)
        fields = {f"frozen.{k}": v for k, v in self._asdict().items()}
        center, slope, offset = (
            checks.vector(name, values.array(name, value), x, axes)
            for name, value in fields.items()
        )
        return apply(
            x,
            center,
            slope,
            offset,
            checks.residual(residual, x),
            axes=axes,
            activation=activation,
            implementation=dispatch.choose(implementation),
        )


def freeze(
    state: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
) -> Frozen:
    """Fixes a layer: no statistics, no update, no gradient to scale and bias.

        y = scale / sqrt(var + epsilon) * (x - mean) + bias

    For inference. A layer that is trained around has `frozen=True`, see
    `jaxbn.nnx.convert` and `jaxbn.linen.converting`.

    It is `jaxbn.batch_norm_inference` with everything but `x` constant. The mean is
    kept apart, because (bias - slope * mean) loses digits where |mean| >> std.

    Args:
        state: running statistics.
        scale: the shape of `state.mean`. Default: one.
        bias: the same shape. Default: zero.
        epsilon: added to the variance, > 0.

    Returns:
        A Frozen, to call on `x` or to hand to `jaxbn.deploy.fold`.

    Raises:
        TypeError: if `state` is no BatchNormState.
        ValueError: if a shape or `epsilon` is invalid.

    Example:
        >>> frozen = jaxbn.deploy.freeze(jaxbn.init_state(1), epsilon=1e-12)
        >>> frozen(jnp.array([[1.0], [3.0]])).ravel()
        Array([1., 3.], dtype=float32)
    """
    state = record("state", state)
    axes = tuple(range(state.mean.ndim))
    state = checks.statistics(state, state.mean, axes)
    scale = checks.vector("scale", scale, state.mean, axes)
    bias = checks.vector("bias", bias, state.mean, axes)
    slope = lax.rsqrt(state.var + options.epsilon(epsilon))
    return lax.stop_gradient(
        Frozen(
            state.mean,
            slope if scale is None else slope * scale,
            jnp.zeros_like(slope) if bias is None else bias,
        )
    )
