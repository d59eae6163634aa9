"""The module that stays in the place of a folded layer in a flax.nnx model."""

from typing import Any

from flax import nnx
from jax import Array

from jaxbn.core.activation import function_of
from jaxbn.core.types import Activation


class Rest(nnx.Module):
    """The residual, the activation and the type of a folded layer."""

    def __init__(self, activation: Activation, dtype: Any):
        self.activation = activation
        self.dtype = dtype

    def __call__(self, x: Array, *_, residual: Array | None = None, **__) -> Array:
        """Applies them; the arguments are those of the layer."""
        y = x if residual is None else x + residual
        function = function_of(self.activation)
        y = y if function is None else function(y)
        return y.astype(self.dtype)
