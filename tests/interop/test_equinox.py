"""Equinox layers and their counterparts agree, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import needs

from jaxbn import interop

eqx = needs("equinox")


def batches(steps=5):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(1, 2, (6, 3, 4)), jnp.float32) for _ in range(steps)]


def trained(mode, steps=2, **options):
    source, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        3, "batch", momentum=0.9, mode=mode, **options
    )
    for x in batches(steps):
        _, state = jax.vmap(source, (0, None), (0, None), axis_name="batch")(x, state)
    return source, state


def test_batch_mode_agrees_over_five_steps():
    assert max(interop.check_equinox(*trained("batch"), batches())) < 3e-6


def test_ema_mode_agrees_at_evaluation():
    source, state = trained("ema")
    x = batches()[0]
    layer = interop.from_equinox(source, state)
    want = jax.vmap(
        lambda row: source(row, state, inference=True)[0], axis_name="batch"
    )(x)
    np.testing.assert_allclose(layer.evaluate(x), want, atol=2e-6)


def test_corrected_variance_is_that_of_the_batches():
    source, state = trained("batch", steps=1)
    (x,) = batches(1)
    want = np.asarray(x, np.float64).var((0, 2))
    got = interop.from_equinox(source, state, corrected=True).state
    np.testing.assert_allclose(got.var, want, rtol=1e-5)
    stored = interop.from_equinox(source, state).state
    np.testing.assert_allclose(stored.var - want, 9, rtol=1e-5)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_layers_make_the_round_trip(mode):
    source, state = trained(mode)
    layer = interop.from_equinox(source, state)._replace(scale=jnp.arange(3.0))
    fresh = trained(mode, steps=0)
    again = interop.from_equinox(*interop.to_equinox(layer, *fresh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, layer)


def test_messages_for_other_arguments():
    module, state = trained("batch", steps=0)
    for source, given, message in [
        (eqx.nn.LayerNorm(3), state, "`source` must be an .*BatchNorm`, got LayerNorm"),
        (eqx.nn.BatchNorm, state, "`source` must be an .*, got the class BatchNorm"),
        (module, None, "`state` must be an `eqx.nn.State`, got None"),
        (*trained("ema", steps=0)[:1], state, "`state` must be the latest one of the"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            interop.from_equinox(source, given)
    with pytest.raises(TypeError, match="`corrected` must be True or False, got 'no'"):
        interop.from_equinox(module, state, corrected="no")


def test_a_used_state_is_refused():
    target, state = trained("batch", steps=0)
    layer = interop.from_equinox(target, state)
    interop.to_equinox(layer, target, state)
    with pytest.raises(ValueError, match="`state` must be the latest one of the layer"):
        interop.to_equinox(layer, target, state)


def test_a_corrected_variance_is_not_negative():
    source, state = trained("batch", steps=0)
    state = state.set(source.batch_counter, jnp.array(3))
    state = state.set(source.batch_state_index, (jnp.zeros(3), 0.7289999 * jnp.ones(3)))
    layer = interop.from_equinox(source, state, corrected=True)
    np.testing.assert_array_equal(layer.state.var, 0)
