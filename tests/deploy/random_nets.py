"""Small models with random variables, without the programs of `init`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def draw(*shape):
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def randomized_linen(net: nn.Module, x):
    """Random variables."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)

    def fill(leaf):
        one = leaf.ndim == 1
        values = (
            rng.uniform(0.5, 1.5, leaf.shape) if one else rng.normal(0, 0.3, leaf.shape)
        )
        return values.astype(leaf.dtype)

    return jax.tree.map(fill, shapes)


def randomized_nnx(make):
    """A model at evaluation with random variables."""
    rng = np.random.default_rng(1)
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def draw(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        low, high = (0.5, 1.5) if leaf.ndim == 1 else (-0.4, 0.4)
        return jnp.asarray(rng.uniform(low, high, leaf.shape).astype(leaf.dtype))

    model = nnx.merge(graph, jax.tree.map(draw, state))
    model.eval()
    return model
