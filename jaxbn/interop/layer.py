"""A batch-normalization layer outside of any framework, and what makes it one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxbn.core import options
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.normalize import batch_norm_inference
from jaxbn.core.types import BatchNormState
from jaxbn.core.values import known, shown
from jaxbn.interop import arguments


class Layer(NamedTuple):
    """Everything a layer is made of; what every conversion goes through.

    Attributes:
        state: running statistics.
        scale: shape (C,), or None for one.
        bias: shape (C,), or None for zero.
        momentum: weight of the old running value; None averages all batches equally.
        epsilon: added to the variance.
        axis: the feature axis.
        unbiased: whether running variances are divided by n - 1.
        debias: whether the running average starts without its initial values.
    """

    state: BatchNormState
    scale: Array | None = None
    bias: Array | None = None
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    axis: int = -1
    unbiased: bool = False
    debias: bool = False

    def train(self, x: Array) -> tuple[Array, "Layer"]:
        """Normalizes a batch, and the layer with the next state."""
        y, state = batch_norm(
            x,
            self.state,
            self.scale,
            self.bias,
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            debias=self.debias,
        )
        return y, self._replace(state=state)

    def evaluate(self, x: Array) -> Array:
        """Normalizes with the running statistics."""
        arrays = (x, self.state, self.scale, self.bias)
        return batch_norm_inference(*arrays, axis=self.axis, epsilon=self.epsilon)


def counts(settings: Any) -> bool:
    """Tells whether a Layer or a module needs the number of batches for its average."""
    return getattr(settings, "debias", False) or settings.momentum is None


def read(parts: Mapping[str, Any], **settings: Any) -> Layer:
    """Makes a layer: the one place where the values of every layer are checked.

    Args:
        parts: mean, variance, count, scale and bias, by what messages call them; the
            last three may be None.
        settings: the other fields of Layer.
    """
    labels, (mean, var, count, scale, bias) = list(parts), parts.values()
    for label, values in zip(labels[:2], (mean, var), strict=True):
        if values is None:
            raise ValueError(
                f"{label} must be an array, got None. A layer without running "
                "statistics cannot be converted."
            )
    mean = arguments.vector(labels[0], mean)

    def like_mean(label: str, values: Any) -> Any:
        values = arguments.vector(label, values)
        if values.shape != mean.shape:
            raise ValueError(
                f"{label} must have the {mean.size} values of {labels[0]}, got "
                f"{values.size}. Take all arrays from one layer."
            )
        return values

    count = arguments.numbers(labels[2], 0 if count is None else count)
    if count.size == 1:  # one for all channels
        one = arguments.vector(labels[2], count.reshape(-1))
        count = jnp.broadcast_to(one, mean.shape)
    var, count = like_mean(labels[1], var), like_mean(labels[2], count)
    for label, values in zip(labels[1:3], (var, count), strict=True):
        _check_not_negative(label, values)
    _check_whole(labels[2], count)
    scale = scale if scale is None else like_mean(labels[3], scale)
    bias = bias if bias is None else like_mean(labels[4], bias)
    state = BatchNormState(mean, var, count.astype(var.dtype))
    for label, values in zip(labels, (*state, scale, bias), strict=True):
        if values is not None:
            arguments.finite(label, values)
    return Layer(state, scale, bias, **_settings(**settings))


def checked(layer: Layer, *, traced: bool = False) -> Layer:
    """A layer that a caller made, if it is one; `traced` if values are not needed."""
    if not isinstance(layer, Layer):
        raise TypeError(
            f"`layer` must be a jaxbn.interop.Layer, got {shown(layer)}. "
            "Make one, or read one with the `from_` function of its framework."
        )
    state = layer.state
    if not isinstance(state, BatchNormState):
        raise TypeError(
            f"`layer.state` must be a BatchNormState, got {shown(state)}. "
            "Create one with `jaxbn.init_state(num_features)`."
        )
    parts = {f"`layer.state.{name}`": v for name, v in state._asdict().items()}
    parts |= {"`layer.scale`": layer.scale, "`layer.bias`": layer.bias}
    settings = dict(zip(Layer._fields[3:], layer[3:], strict=True))
    result = read(parts, **settings)
    arrays = (*result.state, result.scale, result.bias, result.momentum)
    if not traced and any(isinstance(value, Tracer) for value in arrays):
        raise ValueError(
            "`layer` must have values, got traced arrays. Convert it outside of "
            "`jax.jit` and other transformations."
        )
    return result


def _settings(*, momentum, epsilon, axis, unbiased=False, debias=False):
    debias = options.flag("debias", debias)
    if momentum is not None:
        momentum = arguments.number("momentum", momentum)
    return {
        "momentum": options.momentum(momentum, debias=debias),
        "epsilon": options.epsilon(arguments.number("epsilon", epsilon)),
        "axis": options.whole("axis", axis, least=None, hint="It is the feature axis."),
        "unbiased": options.flag("unbiased", unbiased),
        "debias": debias,
    }


def _check_not_negative(label: str, values: Array) -> None:
    if jnp.iscomplexobj(values):
        raise TypeError(
            f"{label} must be real, got {values.dtype}. Take its real part."
        )
    host = known(values)
    if host is not None and (host < 0).any():
        raise ValueError(
            f"{label} must not be negative, got {np.nanmin(host)}. If it is a rounding "
            "error, clip it: `np.maximum(values, 0)`."
        )


def _check_whole(label: str, count: Array) -> None:
    host = known(count)
    if host is not None and (host % 1 > 0).any():
        raise ValueError(
            f"{label} must be whole, got {host[host % 1 > 0][0]}. It is the number of "
            "batches seen."
        )
