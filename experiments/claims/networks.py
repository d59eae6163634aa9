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
from jax import Array

from experiments.claims.lab import engine, splits
from experiments.claims.lab.nets import of_linen
from experiments.claims.lab.plan import Plan
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
    digits = splits.digits(starts=1, seed=0)
    inputs = np.asarray(enlarged(shape)(digits.inputs.reshape(-1, 8, 8, 1)))
    plan = Plan(
        of_linen(network, shape),
        digits._replace(inputs=inputs),
        cells=[{"lr": _RATE}],
        steps=steps,
        batch=_BATCH,
        evals=1,
        seed=0,
        optimizer="adam",
        scored=("test",),
    )
    return float(engine.train(plan).series["test_accuracy"][0, 0, -1])


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
