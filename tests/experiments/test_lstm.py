"""The batch-normalized LSTM against float64, with lengths, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from sweeps import but_slow

from experiments.nets.lstm import init_lstm, lstm

P = PartitionSpec


def data(steps=5, batch=16, features=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, features)) * 2 + np.arange(steps)[:, None, None]
    return x.astype(np.float32), rng.integers(1, steps, batch)


def lstm_in_numpy(params, x):
    def norm(v, scale):
        return (v - v.mean(0)) / np.sqrt(v.var(0) + 1e-5) * scale

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    p = [np.asarray(v, np.float64) for v in params]
    h = c = np.zeros((x.shape[0], len(p[6])))
    for t in range(x.shape[1]):
        gates = norm(h @ p[0], p[3]) + norm(x[:, t] @ p[1], p[4]) + p[2]
        f, i, o, g = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(norm(c, p[5]) + p[6])
        yield h


@functools.cache
def net():
    make = functools.partial(init_lstm, inputs=3, hidden=4, max_steps=5)
    params, states = jax.jit(lambda: make(jax.random.key(0)))()
    return params, states, data()[0].swapaxes(0, 1)


@functools.cache
def after_a_batch():
    """The outputs of a batch in training, and the states after it."""
    return trained(*net())


trained = jax.jit(functools.partial(lstm, training=True))
evaluated = jax.jit(functools.partial(lstm, training=False))


def test_lstm_equals_float64_numpy():
    params, _, x = net()
    got, _ = after_a_batch()
    want = np.stack(list(lstm_in_numpy(params, np.asarray(x, np.float64))), 1)
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("training", but_slow([True, False], [True]))
def test_lstm_computes_in_the_type_of_inputs_and_weights_together(training):
    params, states, x = net()
    run = trained if training else evaluated
    want, _ = run(params, states, x)
    narrow, low_states = jax.jit(
        lambda: init_lstm(
            jax.random.key(0), inputs=3, hidden=4, max_steps=5, dtype="bfloat16"
        )
    )()

    @jax.jit
    def in_low_types(x):
        of = functools.partial(lstm, training=training)
        return of(params, states, x), of(narrow, low_states, x)

    (got, new), (low, _) = in_low_types(x.astype(jnp.bfloat16))
    assert got.dtype == new.cell.mean.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.03)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, float), want, atol=0.05)


def test_lstm_under_x64_stays_float32_unless_asked():
    with jax.enable_x64(True):
        make = functools.partial(init_lstm, inputs=3, hidden=4, max_steps=5)
        params, states = jax.eval_shape(make, jax.random.key(0))
        assert {p.dtype for p in params} == {np.dtype("float32")}
        run = functools.partial(jax.eval_shape, trained, params, states)
        x = data()[0].swapaxes(0, 1)
        assert run(x)[0].dtype == jnp.float32
        assert run(x.astype("float64"))[0].dtype == jnp.float64


def test_lstm_ignores_what_is_beyond_the_lengths():
    params, states, x = net()
    lengths = data()[1]
    beyond = np.arange(5)[None, :, None] >= lengths[:, None, None]
    run = jax.jit(lambda x: lstm(params, states, x, lengths=lengths, training=True))
    got, want = run(np.where(beyond, np.float32(1e3), x)), run(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    y = np.asarray(want[0])
    for row, length in zip(y, lengths, strict=True):
        last = np.broadcast_to(row[length - 1], row[length - 1 :].shape)
        np.testing.assert_array_equal(row[length - 1 :], last)


@pytest.mark.slow
def test_lstm_evaluates_like_training_after_one_batch_and_trains():
    params, _, x = net()
    y, states = after_a_batch()
    again, same = evaluated(params, states, x)
    np.testing.assert_allclose(again, y, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, same, states)

    def loss(params):
        return jnp.mean(lstm(params, states, x, training=True)[0][:, -1] ** 2)

    grads = jax.device_get(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(g).all() for g in grads)
    assert np.abs(grads.hidden).max() > 0


@pytest.mark.slow
def test_lstm_on_eight_devices_equals_one():
    params, states, x = net()
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))

    def local(params, x):
        return lstm(params, states, x, training=True, axis_name="d")

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P())
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6),
        jax.jit(split)(params, x),
        after_a_batch(),
    )
