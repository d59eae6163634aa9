"""Optimizers without their learning rate, which is a number of the cell."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

import jaxbn.optim

OPTIMIZERS = {
    "sgd": optax.identity(),
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "adamw": optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.01)),
    "adamw of kernels": optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(1e-4, mask=jaxbn.optim.weight_decay_mask),
    ),
    "rmsprop": optax.scale_by_rms(),
}


def decayed(hyper: Mapping[str, Any]) -> optax.GradientTransformation:
    """Momentum, and decay of the weights in the gradient, both numbers of the cell."""
    decay = optax.add_decayed_weights(
        hyper["decay"], mask=jaxbn.optim.weight_decay_mask
    )
    return optax.chain(decay, optax.trace(hyper.get("momentum", 0.9)))


def any_of(names: Sequence[str], chosen: Array) -> optax.GradientTransformation:
    """All of the optimizers `names` in one program; `chosen` is the position of one."""
    parts = [OPTIMIZERS[name] for name in names]

    def init(params):
        return tuple(part.init(params) for part in parts)

    def update(updates, state, params=None):
        pairs = [
            part.update(updates, s, params)
            for part, s in zip(parts, state, strict=True)
        ]
        directions, states = zip(*pairs, strict=True)
        one = jax.tree.map(lambda *d: jnp.stack(d)[chosen], *directions)
        return one, tuple(states)

    return optax.GradientTransformation(init, update)
