"""What single experiments measure is what their texts say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sweeps import but_slow

from experiments.claims import claim_inference_statistics, claim_inputs
from experiments.claims.lab import optimizers, probes, readouts, recurrent, splits
from experiments.claims.lab.plan import Context, Model, Net, View
from experiments.claims.lab.table import Table


def test_standardized_inputs_have_a_deviation_of_one_in_every_start():
    size = {"train": 300, "validation": 10, "test": 10}
    data = claim_inputs.uneven(splits.mnist1d(starts=2, seed=0, **size), 0)
    before = data.inputs[data.train].std(1)
    assert before.max() / before.min() > 100 and not np.allclose(*before, rtol=0.1)
    after = claim_inputs.standardized(data).inputs[data.train].astype(float)
    np.testing.assert_allclose(after.std(1), 1, atol=1e-3)
    np.testing.assert_allclose(after.mean(1), 0, atol=1e-3)


def test_statistics_of_the_batch_are_judged_on_the_test_rows():
    def apply(params, state, rows, context):
        return rows, state, ()

    net = Net(lambda key, hyper: ((), ()), apply)
    labels = jnp.array([0, 1, 0])  # the last one is wrong
    rows = {"validation": jnp.array([2]), "test": jnp.array([0, 1])}
    context = Context(True, jax.random.key(0), {})
    view = View(net, jnp.eye(3), labels, *rows.values(), jnp.array([2]), context)
    found = claim_inference_statistics.batch_statistics(Model((), ()), view)
    assert found == {"batch_accuracy": 1.0}


def test_steps_to_a_level_are_read_between_evaluations():
    curves = np.array([[0.0, 0.2, 0.6], [0.5, 0.6, 0.7], [0.1, 0.2, 0.3]])
    found = readouts.first_at(np.array([10, 20, 40]), curves, 0.4)
    np.testing.assert_allclose(found, [30, 10, np.inf])


def test_good_rates_end_between_the_rates_or_beyond_the_grid():
    positions = np.array([-2.0, -1.0, 0.0, 1.0])
    values = np.array([[0.0, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.5]])
    low, high = readouts.good_range(positions, values, 0.1)
    np.testing.assert_allclose(low, [-1.2, np.nan])
    np.testing.assert_allclose(high, [0.25, np.nan])


def test_accuracy_is_read_where_the_loss_reaches_its_level():
    loss = np.array([[1.0, 0.1], [1.0, 0.5], [0.1, 0.01]])
    accuracy = np.array([[0.2, 0.4], [0.2, 0.4], [0.6, 0.7]])
    found = readouts.at_level(loss, accuracy, 10**-0.5)[:, 0]
    np.testing.assert_allclose(found, [0.3, np.nan, 0.6])


def test_rates_at_the_edge_of_their_grid_are_counted():
    def rows(arm, best, **others):
        for lr in (0.1, 0.2, 0.4):
            metrics = {"validation_accuracy": float(lr == best)}
            yield {"arm": arm, "cell": {**others, "lr": lr}, "start": 0} | {
                "metrics": metrics
            }

    table = Table([*rows("a", 0.2), *rows("b", 0.4, size=2), *rows("b", 0.2, size=8)])
    found = dict(table.rates())
    assert found == {"a": False, "b, size 2": True, "b, size 8": False}


def lstm_of_flax(cell, x, layer_norm):
    """The last output of Flax's cell, or of one made with its layer normalization."""
    hidden = recurrent.HIDDEN
    if layer_norm:

        def norm(values):
            return nn.LayerNorm(epsilon=1e-5).apply({"params": ones(values)}, values)

        def ones(values):
            size = values.shape[-1]
            return {"scale": jnp.ones(size), "bias": jnp.zeros(size)}

        h = c = jnp.zeros((len(x), hidden))
        for now in jnp.moveaxis(x, 1, 0):
            gates = norm(h @ cell.hidden) + now @ cell.inputs + cell.bias
            f, i, o, g = jnp.split(gates, 4, -1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(norm(c))
        return h
    params = {}
    for n, gate in enumerate("fiog"):
        part = slice(n * hidden, (n + 1) * hidden)
        params[f"i{gate}"] = {"kernel": cell.inputs[:, part]}
        params[f"h{gate}"] = {"kernel": cell.hidden[:, part], "bias": cell.bias[part]}
    flax = nn.RNN(nn.OptimizedLSTMCell(hidden))
    return flax.apply({"params": {"cell": params}}, x)[:, -1]


@pytest.mark.parametrize("layer_norm", but_slow([False, True], [False]))
def test_the_lstm_is_that_of_flax(layer_norm):
    net = recurrent.plain_lstm(layer_norm=layer_norm)
    keys = jax.random.split(jax.random.key(0), 4)
    params, state = net.init(keys[0], {})
    cell = params["cell"]._replace(bias=jax.random.normal(keys[1], (4 * 24,)))
    params = {"cell": cell, "dense": jnp.eye(recurrent.HIDDEN), "bias": 0.0}
    x = jax.random.normal(keys[2], (3, 40))
    found, _, _ = net.apply(params, state, x, Context(True, keys[3], {}))
    expected = lstm_of_flax(cell, x.reshape(3, 10, 4), layer_norm)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_sizes_are_decades_of_what_activations_see():
    def apply(params, state, x, context):
        return x, state, [100 * x, -0.1 * x]

    rows = jnp.arange(16)
    x = jax.random.normal(jax.random.key(0), (16, 3))
    x /= jnp.sqrt(jnp.mean(jnp.square(x)))
    net = Net(lambda key, hyper: ((), ()), apply)
    context = Context(True, jax.random.key(0), {})
    view = View(net, x, jnp.zeros(16, int), rows, rows, rows, context)
    found = probes.sizes(Model((), ()), view)
    np.testing.assert_allclose(found["size"], [2, -1], atol=1e-5)
    np.testing.assert_allclose(found["singular"], -1, atol=1e-5)
    np.testing.assert_allclose(found["positive"].sum(), 1)


def test_decay_is_that_of_the_cell_and_spares_scales_and_biases():
    params = {"dense": [jnp.ones(2)], "norm": [{"scale": jnp.ones(2)}], "bias": 1.0}
    tx = optimizers.decayed({"decay": 0.01})
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    found = [updates["dense"][0][0], updates["norm"][0]["scale"][0], updates["bias"]]
    np.testing.assert_allclose(found, [0.01, 0, 0])
