"""A class-conditional GAN: the generator knows its class by scale and bias alone.

Each class has a row of scales and of biases, so both have a row for each example, as in
BigGAN. Four classes are four clouds of points around the corners of a square.
Brock, Donahue and Simonyan, 2018. https://arxiv.org/abs/1809.11096
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxbn.nnx

CORNERS = np.array([[2, 2], [2, -2], [-2, 2], [-2, -2]], np.float32)


class Generator(nnx.Module):
    def __init__(self, rngs, classes=4, noise=4, width=32):
        self.first = nnx.Linear(noise, width, rngs=rngs)
        self.norm = jaxbn.nnx.BatchNorm(
            width, use_scale=False, use_bias=False, activation="relu", rngs=rngs
        )
        ones = nnx.initializers.ones
        self.scale = nnx.Embed(classes, width, embedding_init=ones, rngs=rngs)
        self.bias = nnx.Embed(classes, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, noise, label):
        x = self.first(noise)
        x = self.norm(x, scale=self.scale(label), bias=self.bias(label))
        return self.last(x)


def discriminator(rngs):
    first, last = nnx.Linear(6, 64, rngs=rngs), nnx.Linear(64, 1, rngs=rngs)
    return nnx.Sequential(first, nnx.leaky_relu, last)


def judged(critic, points, label):
    return critic(jnp.concatenate([points, jax.nn.one_hot(label, 4)], 1))


@nnx.jit
def update(generator, critic, optimizers, key):
    keys = jax.random.split(key, 3)
    label = jax.random.randint(keys[0], (128,), 0, 4)
    real = jnp.asarray(CORNERS)[label] + 0.3 * jax.random.normal(keys[1], (128, 2))
    noise = jax.random.normal(keys[2], (128, 4))

    fake = generator(noise, label)

    def of_critic(critic):
        true, false = (judged(critic, x, label) for x in (real, fake))
        return jnp.mean(jax.nn.softplus(-true) + jax.nn.softplus(false))

    def of_generator(generator):
        return jnp.mean(
            jax.nn.softplus(-judged(critic, generator(noise, label), label))
        )

    optimizers[1].update(critic, nnx.grad(of_critic)(critic))
    optimizers[0].update(generator, nnx.grad(of_generator)(generator))


def main(steps=600):
    """The mean of the points that each class generates at evaluation."""
    generator, critic = Generator(nnx.Rngs(0)), discriminator(nnx.Rngs(1))
    optimizers = nnx.List([
        nnx.Optimizer(model, optax.adam(3e-3, b1=0.5), wrt=nnx.Param)
        for model in (generator, critic)
    ])  # fmt: skip
    generator.train()
    for key in jax.random.split(jax.random.key(0), steps):
        update(generator, critic, optimizers, key)
    generator.eval()
    noise = jax.random.normal(jax.random.key(1), (256, 4))
    label = jnp.arange(256) % 4
    points = generator(noise, label)
    return np.stack([points[np.arange(256) % 4 == i].mean(0) for i in range(4)])


if __name__ == "__main__":
    for corner, mean in zip(CORNERS, main(), strict=True):
        print(f"class at {corner}: generated around {mean.round(2)}")
