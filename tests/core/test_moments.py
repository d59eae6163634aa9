"""Count, mean and m2 of a batch, and their merging."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st

import jaxbn
from jaxbn.core import moments as stage

moments = jax.jit(jaxbn.moments, static_argnames="axis")


def assert_moments_close(got, want, case, *, roundings=1):
    """Means to the roundings of their size, m2 to those of the spread."""
    error = roundings * case.error
    spread = np.sqrt(want.m2 / np.maximum(want.count, 1))
    step = reference.statistics_roundoff(case.x.dtype)
    rounding = 2 * step * np.abs(want.mean)
    np.testing.assert_array_equal(got.count, want.count)
    mean_error = np.abs(reference.wide(got.mean) - want.mean)
    assert (mean_error <= rounding + 4 * error * spread).all(), mean_error
    m2_error = np.abs(reference.wide(got.m2) - want.m2)
    allowed = error * (want.m2 + want.count * rounding * (spread + rounding))
    assert (m2_error <= allowed).all(), (m2_error, allowed)


@given(case=strategies.cases(strategies.ALL_FLOATS))
def test_moments_match_the_float64_reference(case):
    with jax.enable_x64(case.x.dtype == np.float64):
        got = moments(jnp.asarray(case.x), **case.options)
    assert_moments_close(got, reference.moments(case.x, **case.expected), case)


@given(case=strategies.cases(), seed=strategies.seeds)
def test_a_bad_shift_costs_no_accuracy(case, seed):
    generator = np.random.default_rng(seed)
    size = 10 ** generator.uniform(-2, 5, case.features)
    shift = jnp.asarray(generator.choice([-1, 1], case.features) * size, jnp.float32)
    got = moments(jnp.asarray(case.x), shift=shift, **case.options)
    assert_moments_close(got, reference.moments(case.x, **case.expected), case)


@given(case=strategies.cases(masked=True), bad=st.sampled_from([np.nan, np.inf]))
def test_masked_values_do_not_matter_even_nan(case, bad):
    spoiled = np.where(case.where, case.x, np.array(bad, case.x.dtype))
    got = moments(jnp.asarray(spoiled), **case.options)
    assert_moments_close(got, reference.moments(case.x, **case.expected), case)


@given(case=strategies.cases(), seed=strategies.seeds)
def test_the_order_of_the_rows_does_not_matter(case, seed):
    generator = np.random.default_rng(seed)
    mixed = case
    for row in reference.rows(case.x, case.axis):
        order = generator.permutation(case.x.shape[row])
        where = mixed.where
        if where is not None and where.shape[row] > 1:
            where = where.take(order, row)
        mixed = mixed._replace(x=mixed.x.take(order, row), where=where)
    got = moments(jnp.asarray(mixed.x), **mixed.options)
    assert_moments_close(got, reference.moments(case.x, **case.expected), case)


@given(case=strategies.cases(masked=False), cut=st.sampled_from([0, 0.3, 1]))
def test_any_split_merges_to_the_whole(case, cut):
    row = reference.rows(case.x, case.axis)[0]
    parts = np.split(case.x, [round(cut * case.x.shape[row])], row)
    first, second = (moments(jnp.asarray(p), **case.options) for p in parts)
    want = reference.moments(case.x, **case.expected)
    # A merged mean is rounded when the parts are: |mean| eps enters the distance.
    spread = np.sqrt(want.m2 / want.count)
    rounding = 4 * reference.statistics_roundoff(case.x.dtype) * np.abs(want.mean)
    got = jaxbn.merge(first, second)
    np.testing.assert_array_equal(got.count, want.count)
    assert (np.abs(got.mean - want.mean) <= rounding + 4 * case.error * spread).all()
    allowed = case.error * want.m2 + want.count * rounding * (2 * spread + rounding)
    assert (np.abs(got.m2 - want.m2) <= allowed).all()


def three_parts():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (12, 4)), jnp.float32)
    return [jaxbn.moments(part) for part in (x[:1], x[1:5], x[5:])]


def test_merge_is_associative():
    a, b, c = three_parts()
    left = jaxbn.merge(jaxbn.merge(a, b), c)
    right = jaxbn.merge(a, jaxbn.merge(b, c))
    chex.assert_trees_all_close(left, right, rtol=32 * 2.0**-24)


def test_merge_is_commutative():
    a, b, _ = three_parts()
    got, want = jaxbn.merge(a, b), jaxbn.merge(b, a)
    chex.assert_trees_all_close(got, want, rtol=32 * 2.0**-24)


@pytest.mark.parametrize("order", [1, -1])
def test_merge_with_an_empty_part_changes_nothing(order):
    part = three_parts()[1]
    empty = jaxbn.moments(jnp.zeros((0, 4)))
    chex.assert_trees_all_equal(jaxbn.merge(*[part, empty][::order]), part)


def test_merge_of_two_empty_parts_is_empty():
    empty = jaxbn.moments(jnp.zeros((0, 4)))
    chex.assert_trees_all_equal(jaxbn.merge(empty, empty), empty)


def test_merge_with_an_empty_part_has_finite_gradients():
    empty = jaxbn.moments(jnp.zeros((0, 4)))

    def loss(x):
        return jaxbn.merge(empty, jaxbn.moments(x)).m2.sum()

    x = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(jax.grad(loss)(x), [[-4.0] * 4, [4.0] * 4])


def test_moments_of_no_rows_are_zero():
    want = jaxbn.Moments(*[jnp.zeros(3)] * 3)
    chex.assert_trees_all_equal(jaxbn.moments(jnp.ones((0, 3))), want)


def test_a_fully_masked_channel_has_zero_moments():
    x = jnp.full((4, 2), jnp.nan).at[:, 0].set(7.0)
    got = jaxbn.moments(x, where=jnp.array([[True, False]]))
    want = jaxbn.Moments(jnp.array([4.0, 0]), jnp.array([7.0, 0]), jnp.zeros(2))
    chex.assert_trees_all_equal(got, want)


@pytest.mark.parametrize("value", [0.1, 1e4, -3e-39, 1e15])
@pytest.mark.parametrize("n", [1, 1000])
def test_a_constant_channel_has_almost_no_m2(value, n):
    got = jaxbn.moments(jnp.full((n, 1), value, jnp.float32))
    assert 0 <= got.m2[0] <= n * (2.0**-23 * abs(value)) ** 2


@given(case=strategies.cases())
def test_m2_is_never_negative(case):
    assert (moments(jnp.asarray(case.x), **case.options).m2 >= 0).all()


@given(case=strategies.cases(masked=False))
def test_complex_moments_use_the_squared_modulus(case):
    x = (case.x.astype(np.float32) * (1 - 0.5j)).astype(np.complex64)
    got = moments(jnp.asarray(x), **case.options)
    want = reference.moments(x, **case.expected)
    assert got.mean.dtype == jnp.complex64 and got.m2.dtype == jnp.float32
    # Both parts lose what one may, and their squares have to be added.
    assert_moments_close(got, want, case._replace(x=x), roundings=4)


@pytest.mark.parametrize("ratio", [0, 1e1, 1e2, 1e3, 1e4, 1e5])
def test_variance_is_right_however_far_the_mean_is(ratio):
    x = np.random.default_rng(0).normal(ratio, 1, (4096, 8)).astype(np.float32)
    got = moments(jnp.asarray(x))
    want = reference.moments(x)
    np.testing.assert_allclose(
        got.m2, want.m2, rtol=reference.statistics_error(4096, x.dtype)
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sums_of_16_bits_are_accumulated_in_32(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (20000, 1)), dtype)
    got, want = jaxbn.moments(x), reference.moments(x)
    assert got.mean.dtype == jnp.float32
    limit = reference.statistics_error(20000, x.dtype)
    np.testing.assert_allclose(got.mean, want.mean, rtol=limit)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("masked", [False, True])
def test_synchronised_moments_equal_those_of_all_rows(offset, masked):
    generator = np.random.default_rng(1)
    x = generator.normal(offset, 1, (4, 16, 3)).astype(np.float32)
    x += np.arange(4, dtype=np.float32)[:, None, None]
    where = np.ones((4, 16, 1), bool)
    if masked:
        where = np.arange(16)[None, :, None] < np.array([0, 1, 7, 16])[:, None, None]

    def shared(x, where):
        where = where if masked else None
        return jaxbn.moments(x, where=where, axis_name="i")

    got = jax.vmap(shared, axis_name="i")(jnp.asarray(x), jnp.asarray(where))
    flat = strategies.Case(x.reshape(64, 3), -1, where.reshape(64, 1))
    want = reference.moments(flat.x, **flat.expected)
    for member in range(4):
        assert_moments_close(jax.tree.map(lambda m, i=member: m[i], got), want, flat)


def test_gradients_of_the_moments_are_those_of_their_definition():
    # d sum(u mean + v m2) / dx = valid (u / n + 2 v (x - mean))
    generator = np.random.default_rng(2)
    x = generator.normal(5, 2, (9, 3)).astype(np.float32)
    where = generator.random((9, 3)) < 0.7
    u, v = generator.normal(size=(2, 3)).astype(np.float32)

    def loss(x):
        m = jaxbn.moments(x, where=jnp.asarray(where))
        return jnp.sum(jnp.asarray(u) * m.mean + jnp.asarray(v) * m.m2)

    count, mean, _ = reference.moments(x, where=where)
    want = np.where(where, u / count + 2 * v * (x - mean), 0)
    got = jax.grad(loss)(jnp.asarray(x))
    np.testing.assert_allclose(got, want, atol=32 * 2.0**-24 * np.abs(want).max())


def test_known_counts_are_python_numbers():
    assert stage.known_count(jnp.ones((5, 2, 3)), None, None, (2,)) == 10
    assert (
        stage.known_count(jnp.ones((5, 3)), jnp.ones((5, 1), bool), None, (1,)) is None
    )
