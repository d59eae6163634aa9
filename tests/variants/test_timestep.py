"""Each time step has statistics of its own, also inside scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxbn
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


@functools.cache
def scanned():
    """For every number of rows: the scan, and a loop over layers, of one program."""
    x, lengths = data()
    where = (np.arange(6)[:, None] < lengths)[..., None]

    def step(states, inputs):
        t, x, where = inputs
        y, states = timestep_batch_norm(x, states, t=t, where=where, momentum=0.9)
        return states, y

    @jax.jit
    def scans():
        steps = (jnp.arange(6), x, where)
        return {
            rows: jax.lax.scan(step, init_timestep_state(rows, 3), steps)
            for rows in ROWS
        }

    layer = jax.jit(functools.partial(jaxbn.batch_norm, momentum=0.9))
    loops = {}
    for rows in ROWS:
        layers, out = [jaxbn.init_state(3) for _ in range(rows)], []
        for t in range(6):
            row = min(t, rows - 1)
            y, layers[row] = layer(x[t], layers[row], where=where[t])
            out.append(y)
        loops[rows] = layers, out
    return jax.device_get((scans(), loops))


ROWS = (1, 4, 6, 9)


@pytest.mark.parametrize("max_steps", ROWS)
def test_scan_with_traced_step_equals_a_loop_over_layers(max_steps):
    (got, y), (layers, out) = (results[max_steps] for results in scanned())
    for t, want in enumerate(out):
        np.testing.assert_allclose(y[t], want, atol=1e-5)
    for row, layer in enumerate(layers):
        for a, b in zip(got, layer, strict=True):
            np.testing.assert_allclose(a[row], b, rtol=1e-5, atol=1e-6)


def test_later_steps_use_the_last_statistics_at_evaluation():
    states = init_timestep_state(3, 2)
    states = states._replace(mean=np.arange(6, dtype=np.float32).reshape(3, 2))
    x = np.ones((1, 2), np.float32)
    infer = jax.jit(lambda t: timestep_batch_norm_inference(x, states, t=t))
    plain = jax.jit(jaxbn.batch_norm_inference)
    for t, row in ((0, 0), (2, 2), (7, 2)):
        one = jax.tree.map(lambda v, row=row: np.asarray(v)[row], states)
        np.testing.assert_array_equal(infer(t), plain(x, one))


def test_messages_name_the_argument():
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, got 0"):
        init_timestep_state(0, 3)
    with pytest.raises(ValueError, match=r"`states` must have shape \(steps, chan"):
        timestep_batch_norm(np.ones((2, 3), np.float32), jaxbn.init_state(3), t=0)
