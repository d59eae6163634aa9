"""Evaluation with exact population statistics instead of running averages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab.engine import ONCE, each
from experiments.claims.lab.plan import Context, Net, Outcome, Plan

_BATCH = 64


def exact_accuracy(plan: Plan, outcome: Outcome, net: Net) -> np.ndarray:
    """Returns the test accuracy with statistics of the training rows.

    Rows that fill no batch of 64 are left out.

    Args:
        plan, outcome: a finished run.
        net: that of the plan, but whose normalizations have momentum 0, so that one
            batch leaves its own statistics in the state.

    Returns:
        (starts, cells, 1), like a series with one evaluation.
    """
    inputs, labels = jnp.asarray(plan.splits.inputs), jnp.asarray(plan.splits.labels)
    training = Context(True, jax.random.key(0), {})
    evaluation = training._replace(train=False)

    def one(model, train_rows, test_rows):
        def collect(states, rows):
            seen = net.apply(model.params, states, inputs[rows], training)[1]
            return jax.tree.map(_moments, seen, is_leaf=_is_state)

        used = len(train_rows) // _BATCH * _BATCH
        batches = train_rows[:used].reshape(-1, _BATCH)
        states = jaxbn.deploy.recalibrate(collect, model.state, batches, scan=True)
        logits = net.apply(model.params, states, inputs[test_rows], evaluation)[0]
        return (logits.argmax(-1) == labels[test_rows]).mean()

    compiled = each(one, (0, 0, 0), (0, None, None), options=ONCE)
    found = compiled(outcome.model, plan.splits.train, plan.splits.test)
    return np.asarray(found)[..., None]


def _is_state(value: Any) -> bool:
    return isinstance(value, jaxbn.BatchNormState)


def _moments(state: jaxbn.BatchNormState) -> jaxbn.Moments:
    # Batches are equally large, so any count that they share weighs them rightly.
    count = jnp.full_like(state.mean, _BATCH)
    return jaxbn.Moments(count, state.mean, count * state.var)
