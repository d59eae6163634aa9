"""No variant relies on an implicit broadcast or a mixture of types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.variants import domains, eval_blend, ghost, renorm

CHANNELS = 2
PARAMS = (jnp.ones(CHANNELS), jnp.zeros(CHANNELS))
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
    return eval_blend.eval_blend(x, STATE, *PARAMS, alpha=np.array([0.5, 0.2]))


def of_groups(x):
    return ghost.ghost_batch_norm(x, STATE, *PARAMS, ghost_batch_size=2)


LAYERS = [of_domains, evaluated_by_domain, renormalized, blended, of_groups]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_strict_promotion_changes_nothing(layer, dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, CHANNELS)), dtype)
    want = layer(x)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        got = layer(x)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_groups_of_no_examples_leave_the_state_alone():
    y, state = of_groups(jnp.ones((0, 3, CHANNELS)))
    assert y.shape == (0, 3, CHANNELS)
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
