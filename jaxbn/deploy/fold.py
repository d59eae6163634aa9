"""Folds batch normalization into the linear layer before or after it."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from jaxbn.core import checks, options, values
from jaxbn.deploy.freeze import Frozen


def fold(
    kernel: Array,
    bias: Array | None,
    frozen: Frozen,
    *,
    order: Literal["after", "before"] = "after",
    axis: int = -1,
    input_axis: int = -2,
    groups: int = 1,
) -> tuple[Array, Array]:
    """Kernel and bias of one linear layer that does what two layers did.

    For the layer W x + b and the frozen map s (x - m) + t,

        order="after",  map(layer(x)):   W' = s W,   b' = s (b - m) + t
        order="before", layer(map(x)):   W' = W s,   b' = b + W (t - s m).

    "after" is exact for dense layers and every convolution: of any rank, grouped,
    depthwise or transposed, with any padding. "before" is exact for dense layers and
    convolutions that are not transposed and pad nothing (or wrap around): a zero in the
    padding was a zero after the map, and becomes a zero before it.

    Args:
        kernel: weights of any rank, in Flax layout (..., inputs / groups, outputs)
            unless `axis` and `input_axis` say otherwise.
        bias: shape (outputs,), or None.
        frozen: from `jaxbn.deploy.freeze`; outputs channels for "after", inputs
            channels for "before".
        order: where the batch normalization stands: "after" or "before" the layer.
        axis: the axis of `kernel` that lists the output channels; -2 for a Flax
            ConvTranspose with `transpose_kernel=True`.
        input_axis: the axis that lists the input channels of one group.
        groups: the `feature_group_count` of the convolution; matters for "before".

    Returns:
        The new kernel in its type, and the new bias in its type, or float32 if there
        was none. The arithmetic is float32 or wider.

    Raises:
        TypeError: if `frozen` is no Frozen, or the kernel or the bias no array of
            floating point or complex numbers.
        ValueError: if `order` is unknown, an axis is not there or sizes do not fit.

    Example:
        >>> frozen = jaxbn.deploy.freeze(
        ...     jaxbn.BatchNormState(jnp.ones(2), jnp.full(2, 4.0), jnp.ones(2)),
        ...     epsilon=1e-12,
        ... )
        >>> kernel, bias = jaxbn.deploy.fold(jnp.ones((3, 2)), None, frozen)
        >>> bias
        Array([-0.5, -0.5], dtype=float32)
    """
    hint = "It says where the batch normalization stands relative to the layer."
    options.one_of("order", order, ("after", "before"), hint=hint)
    hint = "Pass the layer's feature_group_count."
    groups = options.whole("groups", groups, hint=hint)
    kernel, axes = _kernel(kernel, input_axis, axis)
    bias = None if bias is None else _bias(bias, kernel, axes[1])
    inputs, outputs = (kernel.shape[a] for a in axes)
    channels = outputs if order == "after" else inputs * groups
    frozen = _frozen(frozen, kernel, channels, outputs, groups)
    wide = jnp.promote_types(jnp.promote_types(kernel.dtype, frozen.slope.dtype), "f4")
    weights = jnp.moveaxis(kernel.astype(wide), axes, (-2, -1))
    center, slope, offset = (v.astype(wide) for v in frozen)
    if order == "after":
        old = jnp.zeros(outputs, wide) if bias is None else bias.astype(wide)
        weights = weights * _last(slope, weights)
        new = slope * (old - center) + offset
    else:
        shift = _per_weight(offset - slope * center, groups, outputs)
        new = (weights * _last(shift, weights)).sum(tuple(range(weights.ndim - 1)))
        new = new if bias is None else new + bias.astype(wide)
        weights = weights * _last(_per_weight(slope, groups, outputs), weights)
    weights = jnp.moveaxis(weights, (-2, -1), axes)
    kind = wide if bias is None else bias.dtype
    return weights.astype(kernel.dtype), new.astype(kind)


def _last(values: Array, weights: Array) -> Array:
    """Along the last axes of `weights`, also where JAX promotes no ranks."""
    return values.reshape((1,) * (weights.ndim - values.ndim) + values.shape)


def _per_weight(vector: Array, groups: int, outputs: int) -> Array:
    """A vector of all inputs as (inputs / groups, outputs)."""
    return jnp.repeat(vector.reshape(groups, -1).T, outputs // groups, axis=1)


def _kernel(kernel: Any, input_axis: Any, axis: Any) -> tuple[Array, tuple[int, int]]:
    """The kernel and its axes of inputs and of outputs."""
    kernel = checks.array(kernel, "kernel")
    first = checks.one_axis(kernel, input_axis, name="input_axis", of="kernel")
    last = checks.one_axis(kernel, axis, of="kernel")
    if first == last:
        raise ValueError(
            f"`input_axis` must not be `axis`, got {values.shown(input_axis)} and "
            f"{values.shown(axis)} for `kernel` with shape {kernel.shape}. One lists "
            "the inputs, the other the outputs."
        )
    return kernel, (first, last)


def _bias(bias: Any, kernel: Array, axis: int) -> Array:
    bias = checks.array(checks.numbers("bias", bias, kernel, of="kernel"), "bias")
    if bias.shape != (kernel.shape[axis],):
        raise ValueError(
            f"`bias` must have shape {(kernel.shape[axis],)} to match axis {axis} of "
            f"`kernel` with shape {kernel.shape}, got {bias.shape}. Check `axis`."
        )
    return bias


def _frozen(
    frozen: Any, kernel: Array, channels: int, outputs: int, groups: int
) -> Frozen:
    if not isinstance(frozen, Frozen):
        raise TypeError(
            f"`frozen` must be a Frozen, got {type(frozen).__name__}. Make one with "
            "`jaxbn.deploy.freeze`."
        )
    if outputs % groups:
        raise ValueError(
            f"`groups` must divide the {outputs} outputs of `kernel`, got {groups}. "
            "Pass the layer's feature_group_count."
        )
    fields = frozen._asdict().items()
    frozen = frozen._make(
        checks.numbers(f"frozen.{k}", v, kernel, of="kernel") for k, v in fields
    )
    for value in frozen:
        if value.shape != (channels,):
            raise ValueError(
                f"`frozen` must have shape {(channels,)} to match `kernel`, got "
                f"{value.shape}. Check `order`, `axis`, `input_axis` and `groups`."
            )
    return frozen
