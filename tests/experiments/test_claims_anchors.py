"""Numbers that are known exactly or from theory, measured with the claims' own code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from experiments.claims import claim_scale_invariance as invariance
from experiments.claims import claim_spectrum as spectrum
from experiments.lab import norms, probes, splits
from experiments.lab.experiment import Setting
from experiments.lab.table import Table

SMOKE = Setting("smoke", seed=0)


def growth(norm, *, width, draws=3, layers=10):
    keys = jax.random.split(jax.random.key(0), draws)
    gradient_norms = functools.partial(
        probes.gradient_norms, norm, width=width, layers=layers
    )
    logs = np.log(jax.jit(jax.vmap(gradient_norms))(keys))
    # The first layer sees Gaussian inputs and not what comes out of a ReLU.
    return -np.polyfit(np.arange(layers - 1), logs[:, 1:].T, 1)[0].mean()


def test_gradients_of_deep_normalized_nets_grow_as_in_theory():
    theory = 0.5 * np.log(np.pi / (np.pi - 1))
    assert theory == pytest.approx(0.19, abs=0.005)
    assert growth(norms.batch(), width=512) == pytest.approx(theory, rel=0.05)


def test_gradients_of_he_nets_do_not_grow():
    assert abs(growth(norms.none(), width=512)) < 0.03


def test_scaling_the_weights_scales_the_gradient_by_the_inverse():
    table = Table(invariance.measure("bn", SMOKE))
    assert (invariance.digits(table, "gradient") > 5).all()
    assert (invariance.digits(table, "output") > 5).all()


def test_noise_falls_as_one_over_the_size_of_the_batch():
    # A fixed example at 0 among Gaussian ones: the mean of g values has variance 1 / g.
    sizes = np.array([8, 16, 32, 64, 128, 256])
    x = jax.random.normal(jax.random.key(0), (4000, 256, 1)).at[:, 0].set(0.0)
    state = jaxbn.init_state(1)

    def first(batch, size):
        valid = jnp.arange(256)[:, None] < size
        return jaxbn.batch_norm(batch, state, where=valid)[0][0, 0]

    values = jax.vmap(jax.vmap(first, (None, 0)), (0, None))(x, jnp.asarray(sizes))
    slope = np.polyfit(np.log(sizes), np.log(values.var(0)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_ghost_batches_have_the_noise_of_their_size():
    x = jax.random.normal(jax.random.key(0), (16, 64, 1)).at[:, ::8].set(0.0)
    net = norms.batch(ghost=8)
    params, state = net.init(1, {})
    context = norms.Context(True, jax.random.key(0), {})
    ghost = jax.vmap(lambda b: net.apply(params, state, b, context)[0])(x)
    alone = jax.vmap(lambda b: norms.batch().apply(params, state, b, context)[0])(
        x.reshape(-1, 8, 1)
    )
    np.testing.assert_allclose(ghost.reshape(-1, 8, 1), alone, atol=1e-5)


@pytest.mark.slow
def test_orthogonality_gap_falls_with_width_as_published():
    table = Table(spectrum.measure("bn widths", Setting("quick", seed=0)))
    assert spectrum.slope(table).mean() == pytest.approx(0.46, abs=0.1)


def test_plain_deep_linear_nets_collapse_to_one_dimension():
    ranks = Table(spectrum.measure("none", SMOKE)).values("none", "last")
    assert (ranks < 3).all()


@pytest.mark.parametrize("size", [2, 5, 64])
def test_normalized_values_are_at_most_the_root_of_the_others(size):
    x = np.zeros((size, 3), np.float32)
    x[0] = [1.0, 100.0, 1e4]  # One value unlike all others: the bound is attained.
    y, _ = jaxbn.batch_norm(jnp.asarray(x), jaxbn.init_state(3), epsilon=1e-12)
    assert np.abs(y).max() == pytest.approx(np.sqrt(size - 1), rel=1e-4)


def test_mnist1d_test_rows_are_new():
    data = splits.mnist1d(starts=2, seed=0)
    assert [len(part[0]) for part in data[2:]] == [4000, 1000, 4000]
    old = {row.tobytes() for row in data.inputs[:5000]}
    assert not any(row.tobytes() in old for row in data.inputs[5000:])
