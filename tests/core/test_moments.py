"""Count, mean and m2 of a batch, and their merging."""

import functools

import chex
import few_shapes
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
merge = jax.jit(jaxbn.merge)


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


def check_moments(case):
    with jax.enable_x64(case.x.dtype == np.float64):
        got = moments(jnp.asarray(case.x), **case.options)
    assert_moments_close(got, reference.moments(case.x, **case.expected), case)
    assert (np.asarray(got.m2) >= 0).all()


@given(case=few_shapes.cases(dtypes=strategies.ALL_FLOATS))
def test_moments_match_the_float64_reference_and_m2_is_never_negative(case):
    check_moments(case)


@pytest.mark.slow
@given(case=strategies.cases(strategies.ALL_FLOATS))
def test_moments_of_every_layout_match_the_float64_reference(case):
    check_moments(case)


@given(case=few_shapes.cases(masked=True), bad=st.sampled_from([np.nan, np.inf]))
def test_masked_values_do_not_matter_even_nan(case, bad):
    spoiled = np.where(case.where, case.x, np.array(bad, case.x.dtype))
    got, want = (moments(x, **case.options) for x in (spoiled, case.x))
    chex.assert_trees_all_equal(got, want)


@given(case=few_shapes.cases(), seed=strategies.seeds)
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


@given(
    dtype=st.sampled_from(strategies.FLOATS),
    seed=strategies.seeds,
    cut=st.sampled_from([0, 2, 7]),
)
def test_any_split_merges_to_the_whole(dtype, seed, cut):
    kind = few_shapes.Kind((7, 3), -1, dtype, ())
    x = few_shapes.batch(kind, np.random.default_rng(seed))
    case = strategies.Case(x, -1, None)
    first, second = (moments(part) for part in np.split(x, [cut]))
    want = reference.moments(x)
    # A merged mean is rounded when the parts are: |mean| eps enters the distance.
    spread = np.sqrt(want.m2 / want.count)
    rounding = 4 * reference.statistics_roundoff(dtype) * np.abs(want.mean)
    got = jax.device_get(merge(first, second))
    np.testing.assert_array_equal(got.count, want.count)
    assert (np.abs(got.mean - want.mean) <= rounding + 4 * case.error * spread).all()
    allowed = case.error * want.m2 + want.count * rounding * (2 * spread + rounding)
    assert (np.abs(got.m2 - want.m2) <= allowed).all()


def three_parts():
    x = np.random.default_rng(0).normal(3, 2, (12, 4)).astype(np.float32)
    return [moments(part) for part in np.split(x, 3)]


def empty_part():
    return moments(np.zeros((0, 4), np.float32))


def test_merge_is_associative():
    a, b, c = three_parts()
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    chex.assert_trees_all_close(left, right, rtol=32 * 2.0**-24)


def test_merge_is_commutative():
    a, b, _ = three_parts()
    got, want = merge(a, b), merge(b, a)
    chex.assert_trees_all_close(got, want, rtol=32 * 2.0**-24)


@pytest.mark.parametrize("order", [1, -1])
def test_merge_with_an_empty_part_changes_nothing(order):
    part = three_parts()[1]
    chex.assert_trees_all_equal(merge(*[part, empty_part()][::order]), part)


def test_merge_of_two_empty_parts_is_empty():
    chex.assert_trees_all_equal(merge(empty_part(), empty_part()), empty_part())


def test_merge_with_an_empty_part_has_finite_gradients():
    @jax.jit
    @jax.grad
    def gradient(x):
        empty = jaxbn.moments(jnp.zeros((0, 4)))
        return jaxbn.merge(empty, jaxbn.moments(x)).m2.sum()

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(gradient(x), [[-4.0] * 4, [4.0] * 4])


def test_moments_of_no_rows_are_zero():
    got = moments(np.ones((0, 3), np.float32))
    for leaf in got:
        np.testing.assert_array_equal(leaf, np.zeros(3))


def test_a_fully_masked_channel_has_zero_moments():
    x = np.float32([[7.0, np.nan]] * 4)
    got = moments(x, where=np.array([[True, False]]))
    for leaf, want in zip(got, ([4, 0], [7, 0], [0, 0]), strict=True):
        np.testing.assert_array_equal(leaf, want)


@pytest.mark.parametrize("n", [1, 1000])
def test_a_constant_channel_has_almost_no_m2(n):
    value = np.float32([0.1, 1e4, -3e-39, 1e15])
    got = moments(np.broadcast_to(value, (n, 4)))
    limit = n * (2.0**-23 * np.abs(value.astype(np.float64))) ** 2
    assert (np.asarray(got.m2) >= 0).all()
    assert (np.asarray(got.m2, np.float64) <= limit).all()


@given(seed=strategies.seeds, kind=st.sampled_from(few_shapes.KINDS[2:6]))
def test_complex_moments_use_the_squared_modulus(seed, kind):
    case = strategies.Case(
        few_shapes.batch(kind, np.random.default_rng(seed)), kind.axis, None
    )
    x = (case.x.astype(np.float32) * (1 - 0.5j)).astype(np.complex64)
    got = moments(x, axis=kind.axis)
    want = reference.moments(x, **case.expected)
    assert got.mean.dtype == jnp.complex64 and got.m2.dtype == jnp.float32
    # Both parts lose what one may, and their squares have to be added.
    assert_moments_close(got, want, case._replace(x=x), roundings=4)


@pytest.mark.parametrize("ratio", [0, 1e1, 1e2, 1e3, 1e4, 1e5])
def test_variance_is_right_however_far_the_mean_is(ratio):
    x = np.random.default_rng(0).normal(ratio, 1, (4096, 8)).astype(np.float32)
    got, want = moments(x), reference.moments(x)
    np.testing.assert_allclose(
        got.m2, want.m2, rtol=reference.statistics_error(4096, x.dtype)
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sums_of_16_bits_are_accumulated_in_32(dtype):
    x = np.random.default_rng(0).normal(1, 1, (20000, 1)).astype(dtype)
    got, want = moments(x), reference.moments(x)
    assert got.mean.dtype == jnp.float32
    limit = reference.statistics_error(20000, x.dtype)
    np.testing.assert_allclose(got.mean, want.mean, rtol=limit)


@functools.partial(jax.jit, static_argnames="masked")
def shared_moments(x, where, *, masked):
    def shared(x, where):
        return jaxbn.moments(x, where=where if masked else None, axis_name="i")

    return jax.vmap(shared, axis_name="i")(x, where)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("masked", [False, True])
def test_synchronised_moments_equal_those_of_all_rows(offset, masked):
    generator = np.random.default_rng(1)
    x = generator.normal(offset, 1, (4, 16, 3)).astype(np.float32)
    x += np.arange(4, dtype=np.float32)[:, None, None]
    where = np.ones((4, 16, 1), bool)
    if masked:
        where = np.arange(16)[None, :, None] < np.array([0, 1, 7, 16])[:, None, None]

    got = jax.device_get(shared_moments(x, where, masked=masked))
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
    got = jax.jit(jax.grad(loss))(x)
    np.testing.assert_allclose(got, want, atol=32 * 2.0**-24 * np.abs(want).max())


def test_known_counts_are_python_numbers():
    assert stage.known_count(jnp.ones((5, 2, 3)), None, None, (2,)) == 10
    assert (
        stage.known_count(jnp.ones((5, 3)), jnp.ones((5, 1), bool), None, (1,)) is None
    )
