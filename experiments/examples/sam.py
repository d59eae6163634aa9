"""Sharpness-aware minimization: two gradients a step, one update of the statistics."""

import jax
import optax
from flax import nnx

import jaxbn.nnx

OPTIMIZER = optax.contrib.sam(
    optax.adam(1e-2),
    optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),  # the way uphill
    opaque_mode=True,
)


def loss(model, x, y):
    return optax.sigmoid_binary_cross_entropy(model(x)[:, 0], y).mean()


@nnx.jit
def step(model, state, x, y):
    value, gradient = nnx.value_and_grad(loss)(model, x, y)
    # At the parameters uphill no batch counts: its statistics are not those in use.
    uphill = nnx.view(model, update_statistics=False)
    graph, params, rest = nnx.split(uphill, nnx.Param, ...)

    def again(params, _):
        return jax.grad(lambda p: loss(nnx.merge(graph, p, rest), x, y))(params)

    updates, state = OPTIMIZER.update(gradient, state, params, grad_fn=again)
    nnx.update(model, optax.apply_updates(params, updates))
    return value, state


def main(steps=60):
    """The losses, and the number of batches in the running statistics."""
    rngs, x = nnx.Rngs(0), 3 + jax.random.normal(jax.random.key(1), (128, 8))
    norm = jaxbn.nnx.BatchNorm(16, activation="relu", debias=True, rngs=rngs)
    first, last = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
    model, y = nnx.Sequential(first, norm, last), x[:, 0] > x[:, 1]
    state, losses = OPTIMIZER.init(nnx.state(model, nnx.Param)), []
    for _ in range(steps):
        value, state = step(model, state, x, y)
        losses.append(float(value))
    return losses, int(nnx.to_pure_dict(nnx.state(norm))["count"][0])


if __name__ == "__main__":
    losses, batches = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, statistics of {batches} batches")
