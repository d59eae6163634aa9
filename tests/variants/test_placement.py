"""Variants on a mesh whose axes are explicit: the same as on one device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxbn
from jaxbn.variants import blend, domains, ghost, renorm

DOMAIN = np.array([0, 2, 2, 0] * 4)


def blended(x, state, _):
    return blend.eval_blend(x, state, alpha=0.3), state


def ghosts(x, state, _):
    return ghost.ghost_batch_norm(x, state, ghost_batch_size=4)


def by_domain(x, states, domain):
    return domains.domain_batch_norm(x, states, domain=domain)


def by_domain_later(x, states, domain):
    return domains.domain_batch_norm_inference(x, states, domain=domain), states


def renormalized(x, state, _):
    return renorm.batch_renorm(x, state, r_max=2.0, d_max=1.0)


CASES = {
    "blend": (blended, jaxbn.init_state(8), P("m")),
    "ghost": (ghosts, jaxbn.init_state(8), P("m")),
    "domains": (by_domain, domains.init_domain_state(3, 8), P(None, "m")),
    "domains later": (by_domain_later, domains.init_domain_state(3, 8), P(None, "m")),
    "renorm": (renormalized, renorm.init_renorm_state(8), P("m")),
}
SPECS = {"examples": P("d"), "features": P(None, None, "m"), "both": P("d", None, "m")}
QUICK = {("blend", "examples", False), ("domains", "both", True)}
ALL = [(name, spec, along) for name in CASES for spec in SPECS for along in (0, 1)]


@pytest.mark.parametrize(
    ("name", "spec", "along"),
    [pytest.param(*c, marks=[] if c in QUICK else pytest.mark.slow) for c in ALL],
)
def test_equals_one_device(name, spec, along):
    """With the state on all devices, or split `along` the features."""
    layer, state, split = CASES[name]
    x = np.random.default_rng(0).standard_normal((16, 3, 8)).astype(np.float32)

    def run(x, state, domain):
        y, backward, new = jax.vjp(lambda x: layer(x, state, domain), x, has_aux=True)
        return y, new, backward(jnp.cos(y))

    want = jax.jit(run)(x, state, DOMAIN)
    mesh = jax.make_mesh((2, 4), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, SPECS[spec])
        state = jax.device_put(jax.device_get(state), split if along else P())
        got = jax.jit(run)(placed, state, jax.device_put(DOMAIN, P(SPECS[spec][0])))
    for old, new in zip(state, got[1], strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
    chex.assert_trees_all_close(
        jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-5
    )
