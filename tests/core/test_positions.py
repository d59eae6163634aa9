"""What is elementwise, told from programs that are traced and never compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import jaxbn
from jaxbn.core.positions import mixing

VECTOR, SQUARE = jnp.arange(4.0), jnp.arange(16.0).reshape(4, 4)


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def horner(y):
    def step(total, factor):
        return total * y + factor, None

    return lax.scan(step, jnp.zeros_like(y), VECTOR)[0]


def printing(y):
    jax.debug.print("{}", y)
    return jnp.tanh(y)


ELEMENTWISE = {
    "jax.nn": lambda y: jax.nn.mish(jax.nn.selu(jax.nn.hard_swish(jax.nn.celu(y)))),
    "erf": jax.scipy.special.erf,
    "normal": jax.scipy.stats.norm.cdf,
    "power": lambda y: jnp.abs(y) ** 2.5,
    "type": lambda y: y.astype(jnp.bfloat16).astype(y.dtype),
    "select": lambda y: jnp.select([y < 0, y < 1], [0.1 * y, y], 1.0),
    "piecewise": lambda y: jnp.piecewise(
        y, [y < 0, y > 1], [lambda y: 0.1 * y, lambda y: y * y, jnp.tanh]
    ),
    "maxout": lambda y: jnp.stack([y, 0.1 * y]).max(0),
    "maxout behind": lambda y: jnp.stack([y, 0.1 * y], -1).max(-1),
    "sum of two": lambda y: jnp.concatenate([y[None], 2 * y[None]]).sum(0),
    "unstacked": lambda y: sum(jnp.unstack(jnp.stack([y, y]))),
    "interp": lambda y: jnp.interp(y, VECTOR, VECTOR**2),
    "table": lambda y: VECTOR[jnp.clip(y.astype(int), 0, 3)],
    "digitize": lambda y: VECTOR[jnp.digitize(y, VECTOR[:3])],
    "polynomial": lambda y: jnp.polyval(VECTOR, y),
    "scan": horner,
    "fori_loop": lambda y: lax.fori_loop(0, 3, lambda i, v: v * y, y),
    "while": lambda y: lax.while_loop(lambda v: (v > 2).any(), lambda v: v / 2, y),
    "map": lambda y: lax.map(jnp.tanh, y),
    "flat": lambda y: jax.vmap(jnp.tanh)(y.reshape(-1)).reshape(y.shape),
    "other shape": lambda y: jnp.tanh(y.reshape(2, 2, 1, 4)).reshape(y.shape),
    "columns": jax.vmap(jnp.tanh, in_axes=1, out_axes=1),
    "vectorize": jnp.vectorize(lambda t: lax.cond(t > 0, jnp.tanh, jnp.sin, t)),
    "checkpoint": jax.checkpoint(jnp.tanh),
    "straight through": lambda y: y + lax.stop_gradient(jnp.round(y) - y),
    "of its place": lambda y: y * VECTOR + SQUARE,
    "random": lambda y: y * jax.random.normal(jax.random.key(0), y.shape),
    "constant": jnp.zeros_like,
    "printing": printing,
    "callback": lambda y: jax.pure_callback(
        np.tanh, jax.ShapeDtypeStruct(y.shape, y.dtype), y
    ),
}
MIXING = {
    "softmax": jax.nn.softmax,
    "norm": lambda y: y / jnp.linalg.norm(y),
    "mean": lambda y: y - y.mean(0),
    "pool": lambda y: nn.max_pool(y[..., None], (3, 3), padding="SAME")[..., 0],
    "mean pool": lambda y: nn.avg_pool(y[..., None], (3, 3), padding="SAME")[..., 0],
    "cumsum": lambda y: jnp.cumsum(y, 0),
    "running": lambda y: lax.scan(lambda c, r: (c + r, c + r), jnp.zeros(4), y)[1],
    "associative": functools.partial(lax.associative_scan, jnp.add),
    "iterated": lambda y: lax.fori_loop(0, 2, lambda i, v: v - v.mean(), y),
    "sort": jnp.sort,
    "top": lambda y: lax.top_k(y, 4)[0],
    "flip": lambda y: y[::-1],
    "roll": lambda y: jnp.roll(y, 1, 0),
    "transpose": jnp.transpose,
    "shuffle": lambda y: y.reshape(2, 2, 4).swapaxes(0, 1).reshape(4, 4),
    "first row": lambda y: jnp.broadcast_to(y[:1], y.shape),
    "mask of a row": lambda y: jnp.where(y[0] > 0, y, 0 * y),
    "one for all": lambda y: lax.cond(y[0, 0] > 0, jnp.tanh, jnp.sin, y),
    "one place": lambda y: y.at[0].set(y[1]),
    "product": lambda y: y @ SQUARE,
    "product before": lambda y: SQUARE @ y,
    "outer": lambda y: (y[:, :, None] * y[:, None, :]).max(-1),
    "rows with a row": lambda y: lax.map(lambda r: r * y[0], y),
    "rows with columns": lambda y: lax.scan(
        lambda c, pair: (c, pair[0] + pair[1]), 0.0, (y, y.T)
    )[1],
    "convolution": lambda y: jnp.convolve(y.ravel(), VECTOR, "same").reshape(y.shape),
    "fft": lambda y: jnp.fft.fft(y).real,
    "cholesky": jnp.linalg.cholesky,
}


def program(function, shape=(4, 4)):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_function_of_each_value_is_elementwise(name):
    assert mixing(program(ELEMENTWISE[name])) is None


@pytest.mark.parametrize("name", MIXING)
def test_an_operation_on_several_positions_is_found(name):
    assert mixing(program(MIXING[name]))


def test_one_value_or_none_mixes_with_nothing():
    for shape in ((1, 1), (0, 3)):
        assert mixing(program(ELEMENTWISE["flat"], shape)) is None
    assert mixing(program(jax.nn.softmax, (1, 1))) is None


def test_what_mixes_is_refused_by_name():
    def pooled(y):
        return nn.max_pool(nn.relu(y), (3,), padding="SAME")

    x, state = jnp.ones((2, 4, 3)), jaxbn.init_state(3)
    for function in (jaxbn.batch_norm, jaxbn.batch_norm_inference):
        with pytest.raises(ValueError, match=r"elementwise, got .*reduce_window_max"):
            function(x, state, activation=pooled)


def test_under_vmap_a_function_of_the_place_sees_the_place():
    def wave(y):
        return y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)

    def layer(x):
        return jaxbn.batch_norm(x, jaxbn.init_state(3), activation=wave)[0]

    def one(x):
        y, pull = jax.vjp(layer, x)
        return y, pull(y)[0]

    def both(x):
        return jax.vmap(one, in_axes=1)(x), [one(x[:, i]) for i in range(2)]

    x = np.cos(np.arange(30, dtype=np.float32)).reshape(5, 2, 3)
    found, each = jax.jit(both)(x)
    for i, want in enumerate(each):
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
