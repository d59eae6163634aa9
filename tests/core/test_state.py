"""Running statistics: how they start and what a batch may and may not do to them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st
from jax import export

import jaxbn
from jaxbn.variants.renorm import batch_renorm, init_renorm_state

ROUNDING = 64 * 2.0**-24
update = jax.jit(
    jaxbn.update, static_argnames=("momentum", "debias", "unbiased", "skip_nonfinite")
)
moments = jax.jit(jaxbn.moments)
merge = jax.jit(jaxbn.merge)


def batches(n, seed=0, rows=5):
    generator = np.random.default_rng(seed)
    x = generator.normal(generator.normal(0, 5, (n, 1, 3)), 2, (n, rows, 3))
    return x.astype(np.float32)


def run(xs, **options):
    state = jaxbn.init_state(xs.shape[-1])
    for x in xs:
        state = update(state, moments(x), **options)
    return state


def expected(xs, **options):
    return reference.running([reference.moments(x) for x in xs], **options)


def some_state():
    return jaxbn.BatchNormState(*np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))


@pytest.mark.parametrize("features", [3, (2, 4), ()])
def test_the_first_state_is_the_identity(features):
    shape = (features,) if isinstance(features, int) else features
    state = jaxbn.init_state(features)
    for leaf, value in zip(state, (0, 1, 0), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.full(shape, value))


def test_the_state_of_complex_input_has_a_real_variance():
    state = jaxbn.init_state(2, dtype=jnp.complex64)
    assert [s.dtype for s in state] == [jnp.complex64, jnp.float32, jnp.float32]


def test_a_state_in_16_bits_counts_on_beyond_them():
    state = jaxbn.init_state(1, dtype=jnp.bfloat16)
    assert [leaf.dtype for leaf in state] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    batch = moments(np.float32([[1], [3]]))
    state = state._replace(count=np.float32([256]))
    new = update(state, batch, momentum=None)
    assert new.count == 257 and new.mean.dtype == jnp.bfloat16


@given(momentum=strategies.momenta, unbiased=st.booleans())
def test_after_one_step_the_state_is_that_batch(momentum, unbiased):
    (x,) = batches(1)
    options = {"momentum": momentum, "unbiased": unbiased}
    state = update(jaxbn.init_state(3), moments(x), **options)
    np.testing.assert_allclose(state.mean, np.mean(x, 0), rtol=ROUNDING)
    np.testing.assert_allclose(state.var, np.var(x, 0, ddof=unbiased), rtol=ROUNDING)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("debias", [False, True])
@given(momentum=strategies.momenta, seed=strategies.seeds)
def test_the_state_follows_the_moving_average(debias, unbiased, momentum, seed):
    xs = batches(9, seed)
    options = {"momentum": momentum, "debias": debias, "unbiased": unbiased}
    got, want = run(xs, **options), expected(xs, **options)
    chex.assert_trees_all_close(
        tuple(got), tuple(want), rtol=ROUNDING, atol=ROUNDING * 10
    )


@pytest.mark.parametrize("unbiased", [False, True])
def test_without_momentum_all_batches_weigh_the_same(unbiased):
    xs = batches(11)
    state = run(xs, momentum=None, unbiased=unbiased)
    np.testing.assert_allclose(state.mean, np.mean(xs, (0, 1)), atol=ROUNDING * 10)
    var = np.var(xs, 1, ddof=unbiased).mean(0)
    np.testing.assert_allclose(state.var, var, rtol=ROUNDING)


@pytest.mark.parametrize("steps", [1, 1000])
def test_a_constant_batch_is_found_again_after_any_number_of_steps(steps):
    (x,) = batches(1)
    batch = moments(x)

    def step(_, state):
        return jaxbn.update(state, batch, momentum=0.999)

    loop = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, step, state))
    state = loop(jaxbn.init_state(3), steps)
    np.testing.assert_allclose(state.mean, batch.mean, rtol=1e-5)


def test_no_momentum_keeps_only_the_last_batch():
    xs = batches(3)
    state = run(xs, momentum=0.0)
    np.testing.assert_allclose(state.mean, np.mean(xs[-1], 0), rtol=ROUNDING)


def test_full_momentum_without_debias_freezes_the_state():
    state = update(some_state(), moments(batches(1)[0]), momentum=1.0, debias=False)
    chex.assert_trees_all_equal(state._replace(count=some_state().count), some_state())


def test_a_traced_momentum_is_the_same_as_a_number():
    state, batch = some_state(), moments(batches(1)[0])
    traced = jax.jit(lambda m: jaxbn.update(state, batch, momentum=m))
    for momentum in (0.0, 0.5, 0.99):
        want = update(state, batch, momentum=momentum)
        chex.assert_trees_all_close(traced(momentum), want, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_momentum_in_16_bits_is_the_number_that_it_holds(dtype):
    batch, first = moments(batches(1)[0]), jaxbn.init_state(3)
    for number in (0.9, 0.99):
        momentum = jnp.asarray(number, dtype)
        for debias in (False, True):
            found, want = (
                jaxbn.update(first, batch, momentum=m, debias=debias)
                for m in (momentum, float(momentum))
            )
            chex.assert_trees_all_close(found, want, rtol=1e-6)


def test_a_momentum_schedule_compiles_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch, momentum):
        return jaxbn.update(state, batch, momentum=momentum)

    chex.clear_trace_counter()
    state, batch = some_state(), moments(batches(1)[0])
    for momentum in (0.5, 0.9, 0.99):
        state = step(state, batch, momentum)
    chex.assert_trees_all_equal(state.count, some_state().count + 3)


def test_an_empty_batch_leaves_the_state_alone():
    empty = moments(np.zeros((0, 3), np.float32))
    chex.assert_trees_all_equal(update(some_state(), empty), some_state())


def test_a_channel_without_values_keeps_its_state_and_count():
    x, where = batches(1)[0], np.array([[True, False, True]])
    got = update(some_state(), moments(x, where=where))
    want = update(some_state(), moments(x))
    old = some_state()
    for new, updated, kept in zip(got, want, old, strict=True):
        np.testing.assert_array_equal(new, [updated[0], kept[1], updated[2]])


def test_one_value_per_channel_keeps_the_unbiased_variance():
    got = update(some_state(), moments(batches(1)[0][:1]), unbiased=True)
    chex.assert_trees_all_equal(got.var, some_state().var)
    assert (got.mean != some_state().mean).all()


# Of the last one the mean is finite, but the sum of squares is not.
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_nonfinite_batch_can_be_kept_out(bad):
    x = batches(1)[0]
    x[2, 1] = bad
    got = update(some_state(), moments(x), skip_nonfinite=True)
    chex.assert_trees_all_equal(got, some_state())


def test_a_nonfinite_batch_is_visible_unless_kept_out():
    x = batches(1)[0]
    x[2, 1] = np.nan
    got = update(some_state(), moments(x))
    np.testing.assert_array_equal(np.isfinite(got.mean), [True, False, True])


def test_skipping_lets_a_finite_batch_through():
    batch = moments(batches(1)[0])
    got = update(some_state(), batch, skip_nonfinite=True)
    chex.assert_trees_all_close(got, update(some_state(), batch), rtol=1e-6)


def test_skipping_is_not_confused_by_a_channel_without_values():
    where = np.array([[True, False, True]])
    batch = moments(batches(1)[0], where=where)
    got = update(some_state(), batch, skip_nonfinite=True)
    chex.assert_trees_all_close(got, update(some_state(), batch), rtol=1e-6)


def test_no_gradient_passes_through_an_update():
    def loss(state, x):
        return sum(map(jnp.sum, jaxbn.update(state, moments(x))))

    gradients = jax.jit(jax.grad(loss, (0, 1)))(some_state(), batches(1)[0])
    for leaf in jax.device_get(jax.tree.leaves(gradients)):
        assert not leaf.any()


@pytest.mark.parametrize("parts", [1, 4, 8])
def test_micro_batches_merge_to_the_update_of_the_whole_batch(parts):
    x = batches(1, rows=16)[0]
    pieces = [moments(piece) for piece in np.split(x, parts)]
    whole = functools.reduce(merge, pieces)
    got, want = update(some_state(), whole), update(some_state(), moments(x))
    chex.assert_trees_all_close(got, want, rtol=ROUNDING)


def test_micro_batches_can_be_merged_in_a_scan():
    x = batches(1, rows=16)[0]
    empty = moments(np.zeros((0, 3), np.float32))

    def step(total, piece):
        return jaxbn.merge(total, moments(piece)), None

    whole, _ = jax.lax.scan(step, empty, x.reshape(4, 4, 3))
    chex.assert_trees_all_close(whole, moments(x), rtol=ROUNDING)


@pytest.mark.parametrize("dtype", strategies.FLOATS, ids=str)
def test_the_state_keeps_its_type_whatever_the_batch(dtype):
    batch = moments(batches(1)[0].astype(dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        update(some_state(), batch), some_state()
    )


def test_a_float32_state_keeps_its_type_for_a_float64_batch():
    with jax.enable_x64(True):
        state = jaxbn.init_state(2)
        batch = moments(np.arange(6.0).reshape(3, 2))
        assert batch.mean.dtype == jnp.float64
        new = update(state, batch)
    assert [s.dtype for s in new] == [jnp.float32] * 3


def test_programs_with_states_and_moments_can_be_stored():
    def step(x, state, renorm):
        seen = jaxbn.moments(x)
        y, renorm = batch_renorm(x, renorm, r_max=1.0, d_max=0.0)
        return y, seen, jaxbn.update(state, seen), renorm

    x = batches(1)[0]
    arguments = x, jaxbn.init_state(3), init_renorm_state(3)
    content = export.export(jax.jit(step))(*arguments).serialize(vjp_order=1)
    got = export.deserialize(content).call(*arguments)
    chex.assert_trees_all_equal(got, jax.jit(step)(*arguments))
