"""Fine-tuning with batches of two: the statistics of the encoder stay as they were.

As RAFT and detectors do it: after the first stage batch normalization is frozen, since
the statistics of so few examples are noise. What is not frozen is trained.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxbn.nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        norms = [nnx.BatchNorm(16, momentum=0.9, rngs=rngs) for _ in range(2)]
        first, second = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.encoder = nnx.Sequential(first, norms[0], nnx.relu, second, norms[1])
        self.head = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.encoder(x)))[:, 0]


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return jnp.mean((model(x) - y) ** 2)

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


def train(model, tx, *, batch, steps, slope):
    optimizer, losses = nnx.Optimizer(model, tx, wrt=nnx.Param), []
    for key in jax.random.split(jax.random.key(batch), steps):
        x = 1 + jax.random.normal(key, (batch, 8))
        losses.append(float(step(model, optimizer, x, slope * x[:, 0])))
    return sum(losses[:20]) / 20, sum(losses[-20:]) / 20


def main(steps=200):
    """Losses at the start and the end, and the encoder before and after."""
    model = Network(nnx.Rngs(0))
    train(model, optax.adamw(1e-2), batch=64, steps=steps, slope=1.0)
    before = nnx.to_pure_dict(nnx.state(model.encoder.layers[1]))
    jaxbn.nnx.convert(model, only="encoder/.*", frozen=True)
    parts = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    frozen = optax.freeze(jaxbn.optim.frozen_mask(*parts, only="encoder/.*"))
    tx = optax.chain(optax.adamw(3e-3), frozen)
    losses = train(model, tx, batch=2, steps=steps, slope=-1.0)
    return losses, before, nnx.to_pure_dict(nnx.state(model.encoder.layers[1]))


if __name__ == "__main__":
    (first, last), _, _ = main()
    print(f"loss {first:.3f} -> {last:.3f} with batches of two")
