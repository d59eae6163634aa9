"""Normalizations of other kinds, called as the fused layers of jaxbn are."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import nnx
from jax import Array


class LinenFlaxNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` with the sum and the activation after it."""

    activation: str | None = None

    def __call__(self, x, use_running_average=None, *, mask=None, residual=None):
        x = super().__call__(x, use_running_average, mask=mask)
        return finished(x, self.activation, residual)


class NnxFlaxNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` with the sum and the activation after it."""

    def __init__(self, features: int, *, activation: str | None, **options: Any):
        super().__init__(features, **options)
        self.activation = activation

    def __call__(self, x, use_running_average=None, *, mask=None, residual=None):
        x = super().__call__(x, use_running_average, mask=mask)
        return finished(x, self.activation, residual)


class Apart(nn.Module):
    """A layer of linen, or none, with the sum and the activation after it."""

    norm: Callable[..., Any] | None
    activation: str | None
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None, residual=None):
        if self.norm is not None:
            x = self.norm(scale_init=self.scale_init)(x, use_running_average, mask=mask)
        return finished(x, self.activation, residual)


def finished(x: Array, activation: str | None, residual: Array | None) -> Array:
    """The steps of a fused layer after the normalization."""
    x = x if residual is None else x + residual
    return x if activation is None else getattr(nn, activation)(x)
