"""Residual networks, in flax.linen and in flax.nnx: the same functions and names.

Of small images: He et al., Deep residual learning for image recognition, 2016, section
4.2 (https://arxiv.org/abs/1512.03385). Of large ones: ResNet-50 of table 1 with the
stride in the 3x3 convolution instead of the first 1x1, known as v1.5.

What is built and run is written once: linen calls `build` where it sets a module up,
nnx where it makes one. Variables have the same names: weights can be exchanged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

# He et al. 2015, equation 14: forward and backward differ by a constant of the net.
KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Goyal et al. 2017, section 5.1.
HEAD = nn.initializers.normal(0.01)
STAGES = (3, 4, 6, 3)
"""Blocks in each stage of ResNet-50."""


class Layers(NamedTuple):
    """The parts of a network.

    Attributes:
        norm: `norm(activation=, scale_init=)` makes a layer of linen, and
            `norm(features, activation=, scale_init=, rngs=)` one of nnx. It is called
            as those of jaxbn are: `layer(x, evaluate, mask=, residual=)`.
        dtype: type to compute in; parameters are float32. Default: that of the images.
        activation: its name, for the layers that have one.
        last_scale: initializer of the last scale of every residual block.
        rngs: for the initializers of nnx; None for linen.
    """

    norm: Callable[..., Any]
    dtype: Any = None
    activation: str = "relu"
    last_scale: Callable[..., Array] = nn.initializers.ones
    rngs: nnx.Rngs | None = None

    def conv(self, inputs: int, features: int, size: int, stride: int = 1) -> Any:
        options = {"strides": stride, "use_bias": False, "dtype": self.dtype}
        options["kernel_init"] = KERNEL
        if self.rngs is None:
            return nn.Conv(features, (size, size), **options)
        return nnx.Conv(inputs, features, (size, size), rngs=self.rngs, **options)

    def normed(self, features: int, *, active: bool = True, last: bool = False) -> Any:
        options = {
            "activation": self.activation if active else None,
            "scale_init": self.last_scale if last else nn.initializers.ones,
        }
        if self.rngs is None:
            return self.norm(**options)
        return self.norm(features, rngs=self.rngs, **options)

    def dense(self, inputs: int, classes: int) -> Any:
        if self.rngs is None:
            return nn.Dense(classes, kernel_init=HEAD)
        return nnx.Linear(inputs, classes, kernel_init=HEAD, rngs=self.rngs)

    def block(self, inputs: int, features: int, stride: int, bottleneck: Any) -> Any:
        kind = LinenBlock if self.rngs is None else NnxBlock
        return kind(inputs, features, stride, bottleneck, self)


class _Block:
    """A residual block.

    Two 3x3 convolutions with a shortcut without parameters (option A), or in a
    bottleneck 1x1, 3x3 and 1x1 convolutions with a projection (option B).
    """

    features: Any
    stride: Any
    bottleneck: Any

    def build(self, inputs: int, use: Layers) -> None:
        features, stride, wide = self.features, self.stride, self.features
        parts = [(3, features, stride), (3, features, 1)]
        if self.bottleneck:
            wide = 4 * features
            parts = [(1, features, 1), (3, features, stride), (1, wide, 1)]
            if stride > 1 or inputs != wide:
                self.shortcut_conv = use.conv(inputs, wide, 1, stride)
                self.shortcut_norm = use.normed(wide, active=False)
        for n, (size, outputs, step) in enumerate(parts, 1):
            setattr(self, f"conv{n}", use.conv(inputs, outputs, size, step))
            setattr(self, f"norm{n}", use.normed(outputs, last=n == len(parts)))
            inputs = outputs

    def run(self, x, evaluate, mask):
        y, last = x, 3 if self.bottleneck else 2
        for n in range(1, last):
            y = getattr(self, f"conv{n}")(y)
            y = getattr(self, f"norm{n}")(y, evaluate, mask=mask)
        y = getattr(self, f"conv{last}")(y)
        if not self.bottleneck:
            x = without_parameters(x, self.stride, self.features)
        elif x.shape != y.shape:
            x = self.shortcut_norm(self.shortcut_conv(x), evaluate, mask=mask)
        return getattr(self, f"norm{last}")(y, evaluate, mask=mask, residual=x)


class LinenBlock(_Block, nn.Module):
    """A residual block in flax.linen."""

    inputs: int
    features: int
    stride: int
    bottleneck: bool
    layers: Layers

    def setup(self):
        self.build(self.inputs, self.layers)

    def __call__(self, x, evaluate, mask):
        return self.run(x, evaluate, mask)


class NnxBlock(_Block, nnx.Module):
    """A residual block in flax.nnx."""

    def __init__(self, inputs, features, stride, bottleneck, layers):
        self.features, self.stride, self.bottleneck = features, stride, bottleneck
        self.build(inputs, layers)

    def __call__(self, x, evaluate, mask):
        return self.run(x, evaluate, mask)


class _ResNet:
    """A network of `depth` layers with weights: 50, or 6n + 2 for small images."""

    depth: Any

    def build(self, channels: int, classes: int, use: Layers) -> None:
        """Makes the layers, for images of so many `channels`."""
        large = self.depth == 50
        width, counts = (64, STAGES) if large else (16, [(self.depth - 2) // 6] * 3)
        self.stem_conv = use.conv(channels, width, *((7, 2) if large else (3, 1)))
        self.stem_norm = use.normed(width)
        self.names, inputs = tuple(name for name, *_ in blocks(counts)), width
        for name, stage, stride in blocks(counts):
            features = width * 2**stage
            setattr(self, name, use.block(inputs, features, stride, large))
            inputs = 4 * features if large else features
        self.head = use.dense(inputs, classes)

    def run(self, images: Array, train: Any, mask: Array | None) -> Array:
        """Returns float32 logits of shape (batch, classes).

        Args:
            images: (batch, height, width, channels), of any floating-point type.
            train: normalize with the statistics of the batch.
            mask: (batch,), true for the images that count in them; None for all.
        """
        if mask is not None:
            mask = jnp.asarray(mask, bool)[:, None, None, None]
        x = self.stem_norm(self.stem_conv(images), not train, mask=mask)
        if self.depth == 50:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for name in self.names:
            x = getattr(self, name)(x, not train, mask)
        return self.head(x.mean((1, 2)).astype(jnp.float32))


class LinenResNet(_ResNet, nn.Module):
    """A ResNet in flax.linen; see `_ResNet`."""

    depth: int
    channels: int
    classes: int
    layers: Layers

    def setup(self):
        self.build(self.channels, self.classes, self.layers)

    def __call__(self, images, *, train=False, mask=None):
        return self.run(images, train, mask)


class NnxResNet(_ResNet, nnx.Module):
    """A ResNet in flax.nnx; see `_ResNet`."""

    def __init__(self, depth: int, channels: int, classes: int, layers: Layers):
        self.depth = depth
        self.build(channels, classes, layers)

    def __call__(self, images, *, train=False, mask=None):
        return self.run(images, train, mask)


def blocks(counts):
    """The name, the stage and the stride of each residual block."""
    for stage, count in enumerate(counts):
        for number in range(count):
            stride = 2 if stage and not number else 1
            yield f"stage{stage + 1}_block{number + 1}", stage, stride


def without_parameters(x: Array, stride: int, features: int) -> Array:
    """Every `stride`-th pixel, and channels of zeros up to `features`."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))
