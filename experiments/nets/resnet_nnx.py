"""The networks of `resnet` in flax.nnx: the same functions, names and weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.nets import resnet


class Layers(NamedTuple):
    """What a network is built of.

    Attributes:
        norm: `norm(features, activation=, scale_init=, rngs=)` makes a layer, which is
            called as `jaxbn.nnx.BatchNorm` is.
        rngs: for the initializers.
        dtype, activation, last_scale: as in `resnet.Layers`.
    """

    norm: Callable[..., Any]
    rngs: nnx.Rngs
    dtype: Any = None
    activation: str = "relu"
    last_scale: Callable[..., Array] = nnx.initializers.ones

    def conv(self, inputs: int, features: int, size: int, stride: int = 1) -> nnx.Conv:
        return nnx.Conv(
            inputs,
            features,
            (size, size),
            strides=stride,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=resnet.KERNEL,
            rngs=self.rngs,
        )

    def normed(self, features: int, *, active: bool = True, last: bool = False) -> Any:
        return self.norm(
            features,
            activation=self.activation if active else None,
            scale_init=self.last_scale if last else nnx.initializers.ones,
            rngs=self.rngs,
        )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; a shortcut without parameters (option A)."""

    expansion = 1

    def __init__(self, inputs: int, features: int, stride: int, use: Layers):
        self.features, self.stride = features, stride
        self.conv1 = use.conv(inputs, features, 3, stride)
        self.norm1 = use.normed(features)
        self.conv2 = use.conv(features, features, 3)
        self.norm2 = use.normed(features, last=True)

    def __call__(self, x, evaluate, mask):
        y = self.norm1(self.conv1(x), evaluate, mask=mask)
        x = resnet.without_parameters(x, self.stride, self.features)
        return self.norm2(self.conv2(y), evaluate, mask=mask, residual=x)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions; a shortcut by projection (option B)."""

    expansion = 4

    def __init__(self, inputs: int, features: int, stride: int, use: Layers):
        wide = self.expansion * features
        self.conv1 = use.conv(inputs, features, 1)
        self.norm1 = use.normed(features)
        self.conv2 = use.conv(features, features, 3, stride)
        self.norm2 = use.normed(features)
        self.conv3 = use.conv(features, wide, 1)
        self.norm3 = use.normed(wide, last=True)
        self.projects = stride > 1 or inputs != wide
        if self.projects:
            self.shortcut_conv = use.conv(inputs, wide, 1, stride)
            self.shortcut_norm = use.normed(wide, active=False)

    def __call__(self, x, evaluate, mask):
        y = self.norm1(self.conv1(x), evaluate, mask=mask)
        y = self.norm2(self.conv2(y), evaluate, mask=mask)
        y = self.conv3(y)
        if self.projects:
            x = self.shortcut_norm(self.shortcut_conv(x), evaluate, mask=mask)
        return self.norm3(y, evaluate, mask=mask, residual=x)


class _ResNet(nnx.Module):
    """The stages and the head.

    Args:
        width: channels of the first stage.
        counts: blocks in each stage.
        classes: number of logits.
        use: what it is built of.
    """

    block: Any

    def __init__(self, width: int, counts: Sequence[int], classes: int, use: Layers):
        inputs = width
        self.blocks = tuple(name for name, *_ in resnet.blocks(counts))
        for name, stage, stride in resnet.blocks(counts):
            features = width * 2**stage
            setattr(self, name, self.block(inputs, features, stride, use))
            inputs = self.block.expansion * features
        head = {"kernel_init": resnet.HEAD, "rngs": use.rngs}
        self.head = nnx.Linear(inputs, classes, **head)

    def __call__(
        self, images: Array, *, train: bool = False, mask: Array | None = None
    ) -> Array:
        """As `resnet.SmallResNet`."""
        evaluate, mask = not train, resnet.per_image(mask)
        x = self.stem(images, evaluate, mask)
        for name in self.blocks:
            x = getattr(self, name)(x, evaluate, mask)
        return self.head(x.mean((1, 2)).astype(jnp.float32))

    def stem(self, x, evaluate, mask):
        raise NotImplementedError


class SmallResNet(_ResNet):
    """6n + 2 layers, for images of about 32 x 32."""

    block = BasicBlock

    def __init__(self, depth: int, channels: int, classes: int, use: Layers):
        self.stem_conv = use.conv(channels, 16, 3)
        self.stem_norm = use.normed(16)
        super().__init__(16, [(depth - 2) // 6] * 3, classes, use)

    def stem(self, x, evaluate, mask):
        return self.stem_norm(self.stem_conv(x), evaluate, mask=mask)


class ResNet50(_ResNet):
    """ResNet-50 v1.5, for images of about 224 x 224."""

    block = Bottleneck

    def __init__(self, channels: int, classes: int, use: Layers):
        self.stem_conv = use.conv(channels, 64, 7, 2)
        self.stem_norm = use.normed(64)
        super().__init__(64, resnet.STAGES, classes, use)

    def stem(self, x, evaluate, mask):
        x = self.stem_norm(self.stem_conv(x), evaluate, mask=mask)
        return nnx.max_pool(x, (3, 3), (2, 2), "SAME")


class FlaxBatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` with the sum and the activation after it."""

    def __init__(self, features: int, *, activation: str | None, **options: Any):
        super().__init__(features, **options)
        self.activation = activation

    def __call__(self, x, use_running_average=None, *, mask=None, residual=None):
        x = super().__call__(x, use_running_average, mask=mask)
        return resnet.finished(x, self.activation, residual)
