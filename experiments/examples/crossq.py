"""The critic of CrossQ: one batch of (s, a) and (s', a') together, no target network.

Both halves go through the critic in one call, so that their statistics are those of the
mixture, and of neither distribution alone. The actor evaluates: its calls of the critic
are those of `nnx.view(critic, use_running_average=True)`.
Bhatt et al., CrossQ, 2024. https://arxiv.org/abs/1902.05605
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxbn.nnx

DISCOUNT = 0.9


def critic(rngs):
    """State and action, of 3 numbers, to the value."""
    norms = [jaxbn.nnx.BatchRenorm(n, momentum=0.9, rngs=rngs) for n in (3, 64)]
    first, last = nnx.Linear(3, 64, rngs=rngs), nnx.Linear(64, 1, rngs=rngs)
    return nnx.Sequential(norms[0], first, nnx.relu, norms[1], last)


@nnx.jit
def update(critic, optimizer, now, reward, later):
    def loss(critic):
        both = critic(jnp.concatenate([now, later]))[:, 0]
        value, later_value = jnp.split(both, 2)
        target = reward + DISCOUNT * jax.lax.stop_gradient(later_value)
        return jnp.mean((value - target) ** 2)

    value, gradient = nnx.value_and_grad(loss)(critic)
    optimizer.update(critic, gradient)
    return value


@nnx.jit
def error(critic, now):
    values = nnx.view(critic, use_running_average=True)(now)[:, 0]
    return jnp.mean(jnp.abs(values - now[:, 0] / (1 - 0.5 * DISCOUNT)))


def main(steps=300):
    """Errors of the values against those of a system that is solved on paper."""
    model = critic(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    errors = []
    for key in jax.random.split(jax.random.key(0), steps):
        now = 1 + jax.random.normal(key, (256, 3))
        reward, later = now[:, 0], now.at[:, 0].multiply(0.5)  # s' = s / 2
        update(model, optimizer, now, reward, later)
        errors.append(float(error(model, now)))
    return errors, model


if __name__ == "__main__":
    errors, _ = main()
    print(f"error of the values {errors[0]:.2f} -> {errors[-1]:.2f}")
