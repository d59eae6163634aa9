"""No variant relies on an implicit broadcast or a mixture of types."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.variants import blend, domains, ghost, renorm

CHANNELS = 2
PARAMS = (np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32))
STATE = jaxbn.init_state(CHANNELS)


def of_domains(x):
    states = domains.init_domain_state(2, CHANNELS)
    return domains.domain_batch_norm(x, states, *PARAMS, domain=np.arange(len(x)) % 2)


def evaluated_by_domain(x):
    states = domains.init_domain_state(2, CHANNELS)
    return domains.domain_batch_norm_inference(x, states, *PARAMS, domain=1)


def renormalized(x):
    state = renorm.init_renorm_state(CHANNELS)
    return renorm.batch_renorm(x, state, *PARAMS, r_max=3.0, d_max=5.0)


def blended(x):
    return blend.eval_blend(x, STATE, *PARAMS, alpha=np.array([0.5, 0.2]))


def of_groups(x):
    return ghost.ghost_batch_norm(x, STATE, *PARAMS, ghost_batch_size=2)


LAYERS = [of_domains, evaluated_by_domain, renormalized, blended, of_groups]


@functools.cache
def results(*, strict):
    """What all layers give in both types, from one program."""

    def run(inputs):
        return {
            (layer.__name__, dtype): layer(x)
            for layer in LAYERS
            for dtype, x in inputs.items()
        }

    x = np.random.default_rng(0).standard_normal((4, 3, CHANNELS))
    inputs = {dtype: x.astype(dtype) for dtype in (np.float32, jnp.bfloat16)}
    inputs = {x.dtype.name: x for x in inputs.values()}
    with contextlib.ExitStack() as stack:
        if strict:
            stack.enter_context(jax.numpy_rank_promotion("raise"))
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
        return jax.jit(run)(inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_strict_promotion_changes_nothing(layer, dtype):
    got, want = (results(strict=s)[layer.__name__, dtype] for s in (True, False))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_groups_of_no_examples_leave_the_state_alone():
    y, state = jax.jit(of_groups)(np.ones((0, 3, CHANNELS), np.float32))
    assert y.shape == (0, 3, CHANNELS)
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
