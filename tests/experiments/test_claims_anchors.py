"""Numbers that are known exactly or from theory, measured with the claims' own code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from experiments.claims import claim_spectrum as spectrum
from experiments.claims.lab import norms, probes
from experiments.claims.lab.experiment import Setting
from experiments.claims.lab.table import Table

WIDTH, DRAWS, LAYERS = 512, 3, 10


@pytest.fixture(scope="module")
def growth():
    """How the logarithm of the gradients' norm grows with each layer, for each norm."""

    @jax.vmap
    def both(key):
        size = {"width": WIDTH, "layers": LAYERS}
        chosen = {"bn": norms.batch(), "none": norms.none()}
        return {k: probes.gradient_norms(n, key, **size) for k, n in chosen.items()}

    def slope(found):
        # The first layer sees Gaussian inputs and not what comes out of a ReLU.
        logs = np.log(found)[:, 1:].T
        return -np.polyfit(np.arange(LAYERS - 1), logs, 1)[0].mean()

    found = jax.jit(both)(jax.random.split(jax.random.key(0), DRAWS))
    return jax.tree.map(slope, found)


@pytest.mark.slow
def test_gradients_of_deep_normalized_nets_grow_as_in_theory(growth):
    theory = 0.5 * np.log(np.pi / (np.pi - 1))
    assert theory == pytest.approx(0.19, abs=0.005)
    assert growth["bn"] == pytest.approx(theory, rel=0.05)


@pytest.mark.slow
def test_gradients_of_he_nets_do_not_grow(growth):
    assert abs(growth["none"]) < 0.03


def test_noise_falls_as_one_over_the_size_of_the_batch():
    # A fixed example at 0 among Gaussian ones: the mean of g values has variance 1 / g.
    sizes = np.array([8, 16, 32, 64, 128, 256])
    state = jaxbn.init_state(1)

    def first(batch, size):
        valid = jnp.arange(256)[:, None] < size
        return jaxbn.batch_norm(batch, state, where=valid)[0][0, 0]

    @jax.jit
    def of_all(key):
        x = jax.random.normal(key, (4000, 256, 1)).at[:, 0].set(0.0)
        return jax.vmap(jax.vmap(first, (None, 0)), (0, None))(x, sizes)

    values = np.asarray(of_all(jax.random.key(0)), np.float64)
    slope = np.polyfit(np.log(sizes), np.log(values.var(0)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_ghost_batches_have_the_noise_of_their_size():
    x = np.random.default_rng(0).standard_normal((16, 64, 1), np.float32)
    x[:, ::8] = 0.0
    net = norms.batch(ghost=8)

    def applied(norm, batch):
        context = norms.Context(True, jax.random.key(0), {})
        return norm.apply(*net.init(1, {}), batch, context)[0]

    @jax.jit
    def both(x):
        ghost = jax.vmap(functools.partial(applied, net))(x)
        alone = functools.partial(applied, norms.batch())
        return ghost.reshape(-1, 8, 1), jax.vmap(alone)(x.reshape(-1, 8, 1))

    ghost, alone = both(x)
    np.testing.assert_allclose(ghost, alone, atol=1e-5)


@pytest.mark.slow
def test_orthogonality_gap_falls_with_width_as_published():
    table = Table(spectrum.measure("bn widths", Setting("quick", seed=0)))
    assert spectrum.slope(table).mean() == pytest.approx(0.46, abs=0.1)


def test_normalized_values_are_at_most_the_root_of_the_others():
    # The features are batches of 2, 5 and 64 examples, the others masked.
    sizes = np.repeat([2, 5, 64], 3)
    x = np.zeros((64, 9), np.float32)
    # One value unlike all others: the bound is attained.
    x[0] = np.tile([1.0, 100.0, 1e4], 3)
    valid = np.arange(64)[:, None] < sizes
    state = jaxbn.init_state(9)
    normalize = jax.jit(functools.partial(jaxbn.batch_norm, epsilon=1e-12))
    y, _ = normalize(x, state, where=valid)
    largest = np.abs(np.where(valid, y, 0)).max(0)
    np.testing.assert_allclose(largest, np.sqrt(sizes - 1), rtol=1e-4)
