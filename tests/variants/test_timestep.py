"""Each time step has statistics of its own, also inside scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxbn
from jaxbn.variants.lstm import init_lstm, lstm
from jaxbn.variants.timestep import (
    init_timestep_state,
    timestep_batch_norm,
    timestep_batch_norm_inference,
)

P = PartitionSpec


def data(steps=6, batch=16, features=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, features)) * 2 + np.arange(steps)[:, None, None]
    return x.astype(np.float32), rng.integers(1, steps, batch)


@pytest.mark.parametrize("max_steps", [1, 4, 6, 9])
def test_scan_with_traced_step_equals_a_loop_over_layers(max_steps):
    x, lengths = data()
    states = init_timestep_state(max_steps, 3)
    where = (np.arange(6)[:, None] < lengths)[..., None]

    def step(states, inputs):
        t, x, where = inputs
        y, states = timestep_batch_norm(x, states, t=t, where=where, momentum=0.9)
        return states, y

    got, y = jax.jit(lambda s: jax.lax.scan(step, s, (jnp.arange(6), x, where)))(states)
    layers = [jaxbn.init_state(3) for _ in range(max_steps)]
    for t in range(6):
        row = min(t, max_steps - 1)
        want, layers[row] = jaxbn.batch_norm(
            jnp.asarray(x[t]), layers[row], where=where[t], momentum=0.9
        )
        np.testing.assert_allclose(y[t], want, atol=1e-5)
    for row, layer in enumerate(layers):
        for a, b in zip(got, layer, strict=True):
            np.testing.assert_allclose(a[row], b, rtol=1e-5, atol=1e-6)


def test_later_steps_use_the_last_statistics_at_evaluation():
    states = init_timestep_state(3, 2)
    states = states._replace(mean=jnp.arange(6.0).reshape(3, 2))
    x = jnp.ones((1, 2))
    for t, row in ((0, 0), (2, 2), (7, 2)):
        one = jax.tree.map(lambda v, row=row: v[row], states)
        want = jaxbn.batch_norm_inference(x, one)
        got = jax.jit(lambda t: timestep_batch_norm_inference(x, states, t=t))(t)
        np.testing.assert_array_equal(got, want)


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


def net(max_steps=5):
    params, states = init_lstm(
        jax.random.key(0), inputs=3, hidden=4, max_steps=max_steps
    )
    return params, states, jnp.asarray(data(5)[0].swapaxes(0, 1))


def test_lstm_equals_float64_numpy():
    params, states, x = net()
    got, _ = jax.jit(lambda *a: lstm(*a, training=True))(params, states, x)
    want = np.stack(list(lstm_in_numpy(params, np.asarray(x, np.float64))), 1)
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("training", [True, False])
def test_lstm_computes_in_the_type_of_inputs_and_weights_together(training):
    params, states, x = net()
    want, _ = lstm(params, states, x, training=training)
    low = x.astype(jnp.bfloat16)
    got, new = lstm(params, states, low, training=training)
    assert got.dtype == new.cell.mean.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.03)
    narrow, low_states = init_lstm(
        jax.random.key(0), inputs=3, hidden=4, max_steps=5, dtype="bfloat16"
    )
    got, _ = lstm(narrow, low_states, low, training=training)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(float), want, atol=0.05)


def test_lstm_under_x64_stays_float32_unless_asked():
    with jax.enable_x64(True):
        params, states, x = net()
        assert {p.dtype for p in params} == {jnp.dtype("float32")}
        assert lstm(params, states, x, training=True)[0].dtype == jnp.float32
        wide = lstm(params, states, x.astype("float64"), training=True)[0]
        assert wide.dtype == jnp.float64


def test_lstm_ignores_what_is_beyond_the_lengths():
    params, states, x = net()
    lengths = jnp.asarray(data(5)[1])
    beyond = jnp.arange(5)[None, :, None] >= lengths[:, None, None]
    run = jax.jit(lambda x: lstm(params, states, x, lengths=lengths, training=True))
    got, want = run(jnp.where(beyond, 1e3, x)), run(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    y = np.asarray(want[0])
    for row, length in zip(y, lengths, strict=True):
        last = np.broadcast_to(row[length - 1], row[length - 1 :].shape)
        np.testing.assert_array_equal(row[length - 1 :], last)


def test_lstm_evaluates_like_training_after_one_batch_and_trains():
    params, states, x = net()
    y, states = jax.jit(lambda *a: lstm(*a, training=True))(params, states, x)
    again, same = jax.jit(lambda *a: lstm(*a, training=False))(params, states, x)
    np.testing.assert_allclose(again, y, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, same, states)

    def loss(params):
        return jnp.mean(lstm(params, states, x, training=True)[0][:, -1] ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in grads)
    assert np.abs(grads.hidden).max() > 0


def test_lstm_on_eight_devices_equals_one():
    params, states, x = net()
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))

    def local(params, x):
        return lstm(params, states, x, training=True, axis_name="d")

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P())
    )
    want = jax.jit(lambda p, x: lstm(p, states, x, training=True))(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6),
        jax.jit(split)(params, x),
        want,
    )


def test_messages_name_the_argument():
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, got 0"):
        init_timestep_state(0, 3)
    with pytest.raises(ValueError, match=r"`states` must have shape \(steps, chan"):
        timestep_batch_norm(jnp.ones((2, 3)), jaxbn.init_state(3), t=0)
