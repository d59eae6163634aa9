"""Trees of states and of moments that do not fit each other are refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.deploy import Frozen, adapt, fold, freeze, recalibrate
from jaxbn.optim import accumulate, decay_scale, init_accumulation, keep_finite

STATE = jaxbn.init_state(3)
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
MOMENTS = jaxbn.moments(X)
SEEN, KERNEL = init_accumulation(STATE), np.ones((2, 3), np.float32)
PLAIN = {k: np.ones(3) for k in ("mean", "var", "count")}


def collect(state, batch):
    return jaxbn.moments(batch)


def by_size(state, batch):
    """Moments of as many channels as there are rows."""
    return jaxbn.moments(batch, axis=0)


CASES = {
    "adapt another tree": (
        lambda: adapt({"a": STATE}, {"b": MOMENTS}, prior_count=1),
        "`moments` must have the structure of `states`, ",
    ),
    "adapt another shape": (
        lambda: adapt({"a": STATE}, {"a": jaxbn.moments(X[:, :2])}, prior_count=1),
        "`moments['a']` must have the shape (3,) of `states['a']`, got (2,).",
    ),
    "adapt from a checkpoint": (
        lambda: adapt({"a": PLAIN}, {"a": MOMENTS}, prior_count=1),
        "`states['a']` must be a BatchNormState, got dict. "
        "Write `BatchNormState(**states['a'])`.",
    ),
    "adapt a negative count": (
        lambda: adapt(STATE, MOMENTS, prior_count=1, count=-1),
        "`count` must be not negative, got -1.",
    ),
    "adapt a count of another shape": (
        lambda: adapt(STATE, MOMENTS, prior_count=np.ones(2)),
        "`prior_count` must be a number or have shape (3,), got (2,).",
    ),
    "recalibrate batches that differ": (
        lambda: recalibrate(by_size, jaxbn.init_state(4), [X, X[:2]]),
        "`collect(...)` must have the shape (4,) of `states`, got (2,).",
    ),
    "recalibrate leaves that differ": (
        lambda: recalibrate(collect, STATE, {"a": X, "b": X[:2]}, scan=True),
        "`batches` must be arrays whose leading axis lists the batches, got shapes "
        "[(4, 3), (2, 3)].",
    ),
    "recalibrate no batches": (
        lambda: recalibrate(collect, STATE, X[:0], scan=True),
        "`batches` must be arrays whose leading axis lists the batches, got shapes ",
    ),
    "recalibrate a text": (
        lambda: recalibrate(collect, STATE, "data"),
        "`batches` must be an iterable of batches, got 'data'.",
    ),
    "accumulate another tree": (
        lambda: accumulate([SEEN], STATE, MOMENTS, ready=True),
        "`accumulated` must have the structure of `states`, ",
    ),
    "accumulate a number": (
        lambda: accumulate(SEEN, STATE, MOMENTS, ready=1),
        "`ready` must be True or False, got 1.",
    ),
    "accumulation of moments": (
        lambda: init_accumulation([MOMENTS]),
        "`states[0]` must be a BatchNormState, got Moments.",
    ),
    "keep another shape": (
        lambda: keep_finite(jnp.ones(3), jnp.ones(1)),
        "`old` must have the shapes of `new`, got (1,) for (3,).",
    ),
    "decay without parameters": (
        lambda: decay_scale(0.1).update({"scale": X}, ()),
        "`params` must have the structure of `updates`, ",
    ),
    "fold an axis that is not there": (
        lambda: fold(KERNEL, None, freeze(STATE), axis=5),
        "`axis` must be in [-2, 2) for `kernel` with shape (2, 3), got 5.",
    ),
    "fold the same axis": (
        lambda: fold(KERNEL, None, freeze(STATE), input_axis=1),
        "`input_axis` must not be `axis`, got 1 and -1 for `kernel` with shape (2, 3).",
    ),
    "fold into integers": (
        lambda: fold(KERNEL.astype(int), None, freeze(STATE)),
        "`kernel` must be complex or floating point of 16 bits or more, got int32.",
    ),
    "frozen without center": (
        lambda: Frozen(None, X[0], X[0])(X),  # type: ignore
        "`frozen.center` must be an array, got None.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument_has_its_message(name):
    call, message = CASES[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_moments_of_no_values_stop_no_debugging():
    nothing = jaxbn.moments(X, where=np.zeros((4, 1), bool))
    with jax.debug_nans(True):
        new = adapt(STATE, nothing, prior_count=0)
    jax.tree.map(np.testing.assert_array_equal, new, STATE)
