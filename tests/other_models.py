"""Models in the ways in which others write them, small and with layers of Flax.

Each is the structure of one public file, not its code: a block whose normalization is a
`functools.partial` (flax, examples/imagenet), layers with names and settings of Keras
(MobileNetV2), layers of `setup` that get the mode in the call (DenseNet, ResNet of
transformers), a mode that is a field (U-Net), positional arguments (DCGAN), an ensemble
by `nn.vmap` (critics of CrossQ); and lifted transformations.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

FEATURES = 4


class ResNet(nn.Module):
    norm: Any = nn.BatchNorm

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(
            self.norm, use_running_average=not train, momentum=0.9, dtype=jnp.float32
        )
        y = nn.relu(norm(name="bn_init")(nn.Dense(FEATURES, use_bias=False)(x)))
        y = norm(scale_init=nn.initializers.zeros_init())(nn.Dense(FEATURES)(y))
        return nn.relu(norm(name="norm_proj")(nn.Dense(FEATURES)(x)) + y)


class MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        options = {"use_running_average": not train, "axis": -1, "momentum": 0.999}
        x = nn.Dense(FEATURES, name="expand")(x)
        x = nn.relu6(nn.BatchNorm(epsilon=1e-3, name="expand_BN", **options)(x))
        return nn.BatchNorm(epsilon=1e-3, use_bias=False, **options)(x)


class DenseNet(nn.Module):
    def setup(self):
        self.bn = nn.BatchNorm(momentum=0.9)
        self.layers = [nn.Dense(FEATURES), nn.BatchNorm(), nn.Dense(FEATURES)]

    def __call__(self, x, train):
        mode = {"use_running_average": not train}
        first, norm, second = self.layers
        y = second(norm(nn.relu(first(self.bn(x, **mode))), **mode))
        return jnp.concatenate([x, y], -1)


class UNetBlock(nn.Module):
    use_running_average: bool

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.BatchNorm(self.use_running_average, momentum=0.9)(nn.Dense(FEATURES)(x))
        return nn.relu(x), None


class UNet(nn.Module):
    """Blocks stacked by scan, in remat and in jit, and one that is called twice."""

    @nn.compact
    def __call__(self, x, train):
        axes = {"params": 0, "batch_stats": 0}
        split = {"params": True}
        stack = nn.scan(UNetBlock, variable_axes=axes, split_rngs=split, length=2)
        x, _ = stack(not train)(x)
        x, _ = nn.remat(UNetBlock)(not train)(x)
        x, _ = nn.jit(UNetBlock)(not train)(x)
        twice = UNetBlock(not train, name="twice")
        return twice(twice(x)[0])[0]


class GAN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        start = nn.initializers.normal(0.02)
        x = nn.BatchNorm(not train, -1, 0.1, scale_init=start)(nn.Dense(FEATURES)(x))
        return nn.tanh(nn.leaky_relu(x, 0.2))


class Critic(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train)
        return nn.Dense(1)(norm(nn.Dense(FEATURES)(x)))


class Ensemble(nn.Module):
    """Critics, and a layer, over a leading axis of the variables."""

    @nn.compact
    def __call__(self, x, train):
        axes = {"variable_axes": {"params": 0, "batch_stats": 0}}
        axes |= {"split_rngs": {"params": True}, "axis_size": 2}
        critics = nn.vmap(Critic, in_axes=(None, None), out_axes=0, **axes)
        y = critics()(x, train)
        norms = nn.vmap(nn.BatchNorm, in_axes=0, out_axes=0, **axes)
        return norms(not train, momentum=0.9)(y)


LINEN = {
    kind.__name__: kind() for kind in (ResNet, MobileNet, DenseNet, UNet, GAN, Ensemble)
}


def number_of_norms(statistics):
    """How many layers have running statistics, each of the stacked ones as one."""
    if "mean" in statistics:
        return 1
    return sum(map(number_of_norms, statistics.values()))


class NnxBlock(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.norm = nnx.BatchNorm(num_features=FEATURES, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.dense(x)))


class NnxNet(nnx.Module):
    """Blocks in containers of each kind, stacked ones, and a layer at two places."""

    def __init__(self, *, rngs):
        norm = functools.partial(nnx.BatchNorm, FEATURES)
        self.listed = nnx.List([NnxBlock(rngs=rngs)])
        self.named = nnx.Dict(block=NnxBlock(rngs=rngs))
        self.plain = nnx.data([{"a": NnxBlock(rngs=rngs)}, (norm(rngs=rngs),)])
        self.bn = norm(epsilon=1e-3, use_scale=False, rngs=rngs)
        self.sequential = nnx.Sequential(self.bn, nnx.relu)
        self.stacked = stacked(rngs)

    def __call__(self, x):
        blocks = self.listed[0], self.named["block"], self.plain[0]["a"]
        for block in (*blocks, self.plain[1][0], self.bn, self.sequential):
            x = block(x)
        return through_stack(self.stacked, x)


@nnx.split_rngs(splits=2)
@nnx.vmap
def stacked(rngs):
    return NnxBlock(rngs=rngs)


@nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
def through_stack(block, x):
    return block(x)
