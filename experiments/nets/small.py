"""A small residual convolutional net for images and signals, with any normalization."""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxbn.linen import BatchNorm

NORMS = ("bn", "gn", "ln", "in", "none")

_GROUPS = 4
_MOMENTUM = 0.9
_WINDOW = 3


class Conv(nn.Module):
    """Convolution with a window of 3 in every spatial dimension, as one matmul.

    The same function as `nn.Conv` with a padding of 1, and the same parameters. Over
    several starts at once `nn.Conv` turns into a grouped convolution, which a CPU runs
    seven times slower than the batched product that this turns into.

    Attributes:
        features: channels of the output.
        stride: step of the window in every spatial dimension.
        use_bias: whether to add a vector that is learned.
    """

    features: int
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (batch, *space, channels) to (batch, *space / stride, features)."""
        space, channels = x.shape[1:-1], x.shape[-1]
        window = (_WINDOW,) * len(space)
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (*window, channels, self.features)
        )
        y = patches(x, self.stride) @ kernel.reshape(-1, self.features)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,))
        return y


def patches(x: Array, stride: int) -> Array:
    """Returns the zero-padded window of 3 around every `stride`-th position.

    Maps (batch, *space, C) to (batch, *space / stride, 3 * ... * 3 * C).
    """
    space = x.shape[1:-1]
    padded = jnp.pad(x, [(0, 0), *[(1, 1)] * len(space), (0, 0)])
    shifts = itertools.product(range(_WINDOW), repeat=len(space))
    return jnp.concatenate(
        [padded[(slice(None), *_windows(shift, space, stride))] for shift in shifts],
        axis=-1,
    )


def _windows(
    shift: Sequence[int], space: Sequence[int], stride: int
) -> tuple[slice, ...]:
    return tuple(slice(s, s + n, stride) for s, n in zip(shift, space, strict=True))


class ResidualNet(nn.Module):
    """A stem, residual blocks with two convolutions each, and a linear classifier.

    Every convolution is followed by `norm`. Convolutions have a bias only where no
    normalization would cancel it, so kernels depend on the key alone and nets with
    different `norm` start from the same ones.

    Attributes:
        norm: one of `NORMS`.
        classes: number of outputs.
        features: channels of every convolution.
        strides: one block for each; the stride of its first convolution.
    """

    norm: str
    classes: int = 10
    features: int = 16
    strides: tuple[int, ...] = (2, 1, 1)

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps (batch, *space, channels) to logits (batch, classes)."""
        x = nn.relu(self._normalized(self._conv(1)(x), train=train))
        for stride in self.strides:
            h = nn.relu(self._normalized(self._conv(stride)(x), train=train))
            h = self._normalized(self._conv(1)(h), train=train)
            x = nn.relu(_shortcut(x, stride) + h)
        return nn.Dense(self.classes)(x.mean(axis=tuple(range(1, x.ndim - 1))))

    def _conv(self, stride: int) -> Conv:
        return Conv(self.features, stride, use_bias=self.norm == "none")

    def _normalized(self, x: Array, *, train: bool) -> Array:
        match self.norm:
            case "none":
                return x
            case "bn":
                return BatchNorm(use_running_average=not train, momentum=_MOMENTUM)(x)
            case "gn":
                return nn.GroupNorm(num_groups=_GROUPS)(x)
            case "ln":  # over space and channels, as in the comparisons of Wu and He
                return nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)))(x)
            case "in":
                return nn.InstanceNorm()(x)
        known = ", ".join(map(repr, NORMS))
        raise ValueError(f"`norm` must be one of {known}, got {self.norm!r}.")


def _shortcut(x: Array, stride: int) -> Array:
    window = (stride,) * (x.ndim - 2)
    return x if stride == 1 else nn.avg_pool(x, window, strides=window)
