"""Residual networks in flax.linen; `resnet_nnx` has the same ones in flax.nnx.

Of small images: He et al., Deep residual learning for image recognition, 2016, section
4.2 (https://arxiv.org/abs/1512.03385). Of large ones: ResNet-50 of table 1 with the
stride in the 3x3 convolution instead of the first 1x1, known as v1.5. Both share the
names of their variables with `resnet_nnx`, so that weights can be exchanged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

# He et al. 2015, equation 14: forward and backward differ by a constant of the net.
KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Goyal et al. 2017, section 5.1.
HEAD = nn.initializers.normal(0.01)
STAGES = (3, 4, 6, 3)
"""Blocks in each stage of ResNet-50."""


class Layers(NamedTuple):
    """What a network is built of.

    Attributes:
        norm: `norm(activation=, scale_init=, name=)` makes a layer, which is called as
            `jaxbn.linen.BatchNorm` is: `layer(x, evaluate, mask=, residual=)`.
        dtype: type to compute in; parameters are float32. Default: that of the images.
        activation: its name, for the layers that have one.
        last_scale: initializer of the last scale of every residual block.
    """

    norm: Callable[..., Any]
    dtype: Any = None
    activation: str = "relu"
    last_scale: Callable[..., Array] = nn.initializers.ones

    def conv(self, features: int, size: int, stride: int = 1, *, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (size, size),
            strides=stride,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=KERNEL,
            name=name,
        )

    def normed(self, name: str, *, active: bool = True, last: bool = False) -> Any:
        return self.norm(
            activation=self.activation if active else None,
            scale_init=self.last_scale if last else nn.initializers.ones,
            name=name,
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a shortcut without parameters (option A)."""

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x, evaluate, mask):
        use = self.layers
        y = use.conv(self.features, 3, self.stride, name="conv1")(x)
        y = use.normed("norm1")(y, evaluate, mask=mask)
        y = use.conv(self.features, 3, name="conv2")(y)
        x = without_parameters(x, self.stride, self.features)
        return use.normed("norm2", last=True)(y, evaluate, mask=mask, residual=x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; a shortcut by projection (option B)."""

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x, evaluate, mask):
        use, wide = self.layers, 4 * self.features
        y = use.conv(self.features, 1, name="conv1")(x)
        y = use.normed("norm1")(y, evaluate, mask=mask)
        y = use.conv(self.features, 3, self.stride, name="conv2")(y)
        y = use.normed("norm2")(y, evaluate, mask=mask)
        y = use.conv(wide, 1, name="conv3")(y)
        if x.shape != y.shape:
            x = use.conv(wide, 1, self.stride, name="shortcut_conv")(x)
            x = use.normed("shortcut_norm", active=False)(x, evaluate, mask=mask)
        return use.normed("norm3", last=True)(y, evaluate, mask=mask, residual=x)


class SmallResNet(nn.Module):
    """6n + 2 layers, for images of about 32 x 32.

    Attributes:
        depth: layers with weights, 6n + 2.
        classes: number of logits.
        layers: what it is built of.
    """

    depth: int
    classes: int
    layers: Layers

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, mask: Array | None = None
    ) -> Array:
        """Returns float32 logits of shape (batch, classes).

        Args:
            images: (batch, height, width, channels), of any floating-point type.
            train: normalize with the statistics of the batch.
            mask: (batch,), true for the images that count in them. Default: all.
        """
        how, mask = not train, per_image(mask)
        x = self.layers.conv(16, 3, name="stem_conv")(images)
        x = self.layers.normed("stem_norm")(x, how, mask=mask)
        for name, stage, stride in blocks([(self.depth - 2) // 6] * 3):
            x = BasicBlock(16 * 2**stage, stride, self.layers, name=name)(x, how, mask)
        return _head(x, self.classes)


class ResNet50(nn.Module):
    """ResNet-50 v1.5, for images of about 224 x 224.

    Attributes:
        classes: number of logits.
        layers: what it is built of.
    """

    classes: int
    layers: Layers

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, mask: Array | None = None
    ) -> Array:
        """As `SmallResNet`."""
        how, mask = not train, per_image(mask)
        x = self.layers.conv(64, 7, 2, name="stem_conv")(images)
        x = self.layers.normed("stem_norm")(x, how, mask=mask)
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for name, stage, stride in blocks(STAGES):
            x = Bottleneck(64 * 2**stage, stride, self.layers, name=name)(x, how, mask)
        return _head(x, self.classes)


class FlaxBatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` with the sum and the activation after it."""

    activation: str | None = None

    def __call__(self, x, use_running_average=None, *, mask=None, residual=None):
        x = super().__call__(x, use_running_average, mask=mask)
        return finished(x, self.activation, residual)


def finished(x: Array, activation: str | None, residual: Array | None) -> Array:
    """What a fused layer does after the normalization."""
    x = x if residual is None else x + residual
    return x if activation is None else getattr(nn, activation)(x)


def blocks(counts):
    """The name, the stage and the stride of each residual block."""
    for stage, count in enumerate(counts):
        for number in range(count):
            stride = 2 if stage and not number else 1
            yield f"stage{stage + 1}_block{number + 1}", stage, stride


def per_image(mask: Array | None) -> Array | None:
    """A mask of images as a mask of their values."""
    return None if mask is None else jnp.asarray(mask, bool)[:, None, None, None]


def without_parameters(x: Array, stride: int, features: int) -> Array:
    """Every `stride`-th pixel, and channels of zeros up to `features`."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))


def _head(x: Array, classes: int) -> Array:
    pooled = x.mean((1, 2)).astype(jnp.float32)
    return nn.Dense(classes, kernel_init=HEAD, name="head")(pooled)
