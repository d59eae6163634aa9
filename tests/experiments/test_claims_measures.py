"""What single experiments measure is what their texts say."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import claim_inference_statistics, claim_inputs
from experiments.claims.lab import splits
from experiments.claims.lab.plan import Context, Model, Net, View


def test_standardized_inputs_have_a_deviation_of_one_or_never_change():
    data = claim_inputs.uneven(splits.digits(starts=2, seed=0), 0)
    before = data.inputs[data.train[0]]
    after = claim_inputs.standardized(data).inputs[data.train[0]].astype(float)
    changes = np.ptp(before, axis=0) > 0
    assert changes.sum() > 55
    np.testing.assert_allclose(after.std(0)[changes], 1, atol=1e-3)
    np.testing.assert_allclose(after.mean(0)[changes], 0, atol=1e-3)
    np.testing.assert_allclose(after[:, ~changes], 0, atol=1e-3)


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
