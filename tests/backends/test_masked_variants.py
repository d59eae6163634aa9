"""Variants with masks, features not last: kernels and `xla` give the same gradients."""

import jax
import numpy as np
import pytest

import jaxbn
from jaxbn.variants import domains, ghost, renorm, timestep

built = pytest.mark.skipif(
    jaxbn.implementations()["native"] is not None, reason="the library is not built"
)
SHAPE, CHANNELS = (8, 4, 3, 50), 4
ONES, ZEROS = np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)


def recalibrated(x, scale, bias, *, axis, where, implementation, **_):
    """The output by statistics that `recalibrate` collects from two half batches."""
    state = jaxbn.init_state(CHANNELS)
    halves = jax.tree.map(lambda v: v.reshape(2, -1, *v.shape[1:]), (x, where))

    def collect(_, batch):
        by = {"axis": axis, "implementation": implementation}
        return jaxbn.moments(batch[0], where=batch[1], **by)

    state = jaxbn.deploy.recalibrate(collect, state, halves, scan=True)
    by = {"axis": axis, "implementation": implementation}
    return jaxbn.batch_norm_inference(x, state, scale, bias, **by)


def first(function, state, **fixed):
    return lambda x, scale, bias, **by: function(x, state, scale, bias, **fixed, **by)[
        0
    ]


VARIANTS = {
    "ghost": first(
        ghost.ghost_batch_norm, jaxbn.init_state(CHANNELS), ghost_batch_size=4
    ),
    "timestep": first(
        timestep.timestep_batch_norm, timestep.init_timestep_state(2, CHANNELS), t=1
    ),
    "domains": first(
        domains.domain_batch_norm,
        domains.init_domain_state(2, CHANNELS),
        domain=np.arange(8) % 2,
    ),
    "renorm": first(
        renorm.batch_renorm, renorm.init_renorm_state(CHANNELS), r_max=2.0, d_max=1.0
    ),
    "output": first(
        jaxbn.batch_norm,
        jaxbn.init_state(CHANNELS),
        save="output",
        activation="leaky_relu",
    ),
    "recompute": first(
        jaxbn.batch_norm,
        jaxbn.init_state(CHANNELS),
        save="recompute",
        activation="relu",
    ),
    "recalibrate": recalibrated,
}


@jax.jit
def program(x, scale, bias, where, ct):
    """y and the gradients of every variant by both implementations."""
    found = {}
    for name, layer in VARIANTS.items():
        for implementation in ("native", "xla"):
            by = {"where": where, "implementation": implementation, "axis": 1}
            y, back = jax.vjp(lambda *a: layer(*a, **by), x, scale, bias)  # noqa: B023
            found.setdefault(name, []).append((y, *back(ct)))
    return found


@built
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["examples", "rows"])
def test_gradients_of_variants_do_not_depend_on_the_implementation(kind):
    draw = np.random.default_rng(0)
    x, ct = (draw.normal(1, 2, SHAPE).astype(np.float32) for _ in range(2))
    shape = (8, 1, 3, 50) if kind == "rows" else (8, 1, 1, 1)
    drawn = draw.random(shape) < 0.6
    for where in (drawn, np.zeros(shape, bool)):
        for seen in (ct, np.where(where, ct, 0)):
            for name, results in program(x, ONES, ZEROS, where, seen).items():
                for mine, other in zip(*results, strict=True):
                    limit = 2e-5 * (1 + np.abs(other).max())
                    np.testing.assert_allclose(mine, other, atol=limit, err_msg=name)
                dx = np.asarray(results[0][1])
                if seen is not ct and name != "recalibrate":
                    assert not np.where(where, 0, dx).any(), name
