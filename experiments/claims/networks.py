"""The networks that the notes show, on digits enlarged to their size.

Run: python -m experiments.claims.networks      (half a minute on 2 cores)

    dense    784-128-64-10, normalization before ReLU (note 003)
    image    Conv32 3x3 on 64x64x3, normalization, ReLU, Flatten, Dense 10 (note 003)
    after    Conv, ReLU, normalization, Flatten, Dense, ReLU, normalization (note 002)
    before   the same with normalization before ReLU (note 002)
    wide     Dense 64 with ReLU, then normalization (note 001)
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.common import data
from jaxbn.linen import BatchNorm

_STEPS, _BATCH, _RATE = 40, 64, 0.003


class Network(nn.Module):
    """Layers in a row; "norm" and "relu" stand for themselves.

    Attributes:
        layers: what to apply, in order: a number of dense units, a kernel size and
            channels, "norm", "relu" or "flatten".
    """

    layers: Sequence[int | tuple[int, int] | str]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps (batch, *shape) to logits (batch, 10)."""
        for layer in self.layers:
            match layer:
                case int():
                    x = nn.Dense(layer)(x)
                case (size, channels):
                    x = nn.Conv(channels, (size, size))(x)
                case "norm":
                    # Above 0.9 the average lags behind so short a training.
                    x = BatchNorm(use_running_average=not train, momentum=0.9)(x)
                case "relu":
                    x = nn.relu(x)
                case "flatten":
                    x = x.reshape(len(x), -1)
        return x


NETWORKS: dict[str, tuple[Network, tuple[int, ...]]] = {
    "dense": (
        Network((128, "norm", "relu", 64, "norm", "relu", 10)),
        (784,),
    ),
    "image": (
        Network(((3, 32), "norm", "relu", "flatten", 10)),
        (64, 64, 3),
    ),
    "after": (
        Network(((3, 8), "relu", "norm", "flatten", 64, "relu", "norm", 10)),
        (28, 28, 1),
    ),
    "before": (
        Network(((3, 8), "norm", "relu", "flatten", 64, "norm", "relu", 10)),
        (28, 28, 1),
    ),
    "wide": (
        Network((64, "relu", "norm", 10)),
        (784,),
    ),
}


def train(network: Network, shape: tuple[int, ...], *, steps: int = _STEPS) -> float:
    """Trains on the digits, enlarged to `shape`, and returns the test accuracy."""
    digits = data.load("digits", starts=1, seed=0)
    enlarge = enlarged(shape)
    tx = optax.adam(_RATE)
    example = enlarge(digits.inputs[:1])
    variables = jax.jit(network.init, static_argnames="train")(
        jax.random.key(0), example, train=False
    )
    params, statistics = variables["params"], variables["batch_stats"]
    opt_state = tx.init(params)

    @jax.jit
    def step(params, statistics, opt_state, x, labels):
        def loss(params):
            both: Any = network.apply(
                {"params": params, "batch_stats": statistics},
                enlarge(x),
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(both[0], labels)
            return losses.mean(), both[1]["batch_stats"]

        gradient, statistics = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), statistics, opt_state

    for rows in batches(digits.train[0], steps):
        x, labels = digits.inputs[rows], digits.labels[rows]
        params, statistics, opt_state = step(params, statistics, opt_state, x, labels)
    rows = digits.test[0]
    variables = {"params": params, "batch_stats": statistics}
    logits: Any = network.apply(variables, enlarge(digits.inputs[rows]), train=False)
    return float((logits.argmax(-1) == digits.labels[rows]).mean())


def batches(rows: np.ndarray, steps: int) -> np.ndarray:
    """Returns random rows for every step, (steps, batch)."""
    rng = np.random.default_rng(0)
    return np.stack([rng.choice(rows, _BATCH, replace=False) for _ in range(steps)])


def enlarged(shape: tuple[int, ...]) -> Callable[[Any], Array]:
    """Returns what turns (batch, 8, 8, 1) into (batch, *shape)."""
    image = (28, 28, 1) if len(shape) == 1 else shape

    def enlarge(x):
        big = jax.image.resize(x, (len(x), *image[:2], 1), "nearest")
        return jnp.broadcast_to(big, (len(x), *image)).reshape(len(x), *shape)

    return enlarge


def main() -> int:
    """Trains every network for a few steps and prints what it reaches."""
    for name, (network, shape) in NETWORKS.items():
        accuracy = train(network, shape)
        layers = " ".join(map(str, network.layers))
        print(f"{name:7} {100 * accuracy:5.1f} % after {_STEPS} steps   {layers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
