"""What is unusual and right is accepted, and means what the usual form does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbn

X, STATE = np.ones((8, 3), np.float32), jaxbn.init_state(3)


@jax.custom_jvp
def with_jvp(x):
    return x * 2


with_jvp.defjvp(lambda p, t: (p[0] * 2, t[0] * 2))


@jax.custom_vjp
def with_vjp(x):
    return jnp.round(x)


with_vjp.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


class Callable:
    def __call__(self, x):
        return jnp.sinh(x)


def looped(x):
    return lax.fori_loop(0, 3, lambda _, y: y * 0.5 + 1, x)


ACTIVATIONS = {
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "partial": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    "object": Callable(),
    "jitted": jax.jit(jnp.tanh),
    "map": lambda x: lax.map(jnp.tanh, x),
    "fori_loop": looped,
    "interp": lambda x: jnp.interp(x, jnp.arange(3.0), jnp.array([0.0, 1.0, 4.0])),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "vector": lambda x: x * jnp.arange(x.shape[-1], dtype=x.dtype),
}


def norm(x, state=STATE, **options):
    return jaxbn.batch_norm(x, state, **options)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_elementwise_activations(name):
    def loss(x):
        return norm(x, activation=ACTIVATIONS[name])[0].sum()

    with jax.numpy_rank_promotion("allow"):
        assert jax.eval_shape(jax.grad(loss), X).shape == X.shape


def test_a_slope_for_each_channel_may_be_traced():
    def loss(slope, x):
        prelu = lambda z: jnp.where(z > 0, z, slope * z)  # noqa: E731
        return norm(x, activation=prelu)[0].sum()

    with jax.numpy_rank_promotion("allow"):
        assert jax.eval_shape(jax.grad(loss), X[0], X).shape == (3,)


AXES = [1, [1], (-1,), np.int8(1), np.array(1), np.array([1]), range(1, 2)]


@pytest.mark.parametrize("axis", [*AXES, jnp.array(1), jnp.array([1])], ids=str)
def test_axes(axis):
    got, want = (jax.make_jaxpr(lambda x, a=a: norm(x, axis=a))(X) for a in (axis, -1))
    assert str(got) == str(want)


@pytest.mark.parametrize("size", [3, [3], np.uint8(3), np.array(3), jnp.array(3)])
def test_sizes(size):
    assert jaxbn.init_state(size).mean.shape == (3,)


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float32, np.int32])
@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_momentum_of_any_type(kind, of):
    with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(lambda x: norm(x, momentum=of(0, kind)), X)


def test_momentum_may_be_traced():
    def train(momentum):
        return norm(X, momentum=momentum)[1]

    jax.eval_shape(train, 0.9)
    assert jax.eval_shape(jax.vmap(train), np.ones(2, np.float32)).mean.shape == (2, 3)


STATES = {
    "numpy": jaxbn.BatchNormState(*map(np.asarray, STATE)),
    "lists": jaxbn.BatchNormState([0.0] * 3, [1.0] * 3, [0.0] * 3),  # type: ignore
    "integer count": STATE._replace(count=np.zeros(3, np.int32)),
    "one count": STATE._replace(count=np.float32(2)),
    "integer": STATE._replace(count=4),  # type: ignore
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("momentum", [0.9, None])
def test_states(name, momentum):
    with jax.numpy_dtype_promotion("standard"):
        new = jax.eval_shape(lambda x: norm(x, STATES[name], momentum=momentum)[1], X)
    assert {leaf.shape for leaf in new} == {(3,)}
