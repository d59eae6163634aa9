"""Normalizations of other kinds, called as the fused layers of jaxbn are."""

import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import nnx
from jax import Array


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


def linen_flax_norm(
    *, activation: str | None = None, scale_init: Any = nn.initializers.ones, **options
) -> Apart:
    """Makes a `flax.linen.BatchNorm` with the sum and the activation after it."""
    norm = functools.partial(nn.BatchNorm, name="norm", **options)
    return Apart(norm, activation, scale_init)


class NnxFlaxNorm(nnx.Module):
    """`flax.nnx.BatchNorm` with the sum and the activation after it."""

    def __init__(self, features: int, *, activation: str | None, **options: Any):
        self.norm = nnx.BatchNorm(features, **options)
        self.activation = activation

    def __call__(self, x, use_running_average=None, *, mask=None, residual=None):
        x = self.norm(x, use_running_average, mask=mask)
        return finished(x, self.activation, residual)


def finished(x: Array, activation: str | None, residual: Array | None) -> Array:
    """The steps of a fused layer after the normalization."""
    x = x if residual is None else x + residual
    return x if activation is None else getattr(nn, activation)(x)
