"""The training layer: values, statistics however badly scaled, state and residuals."""

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

EPSILON = 1e-5
# Small programs run once each: all calls of one shape and type share this one.
train = jax.jit(jaxbn.batch_norm, static_argnames="axis")


def draw(shape, seed=0, mean=0.0, std=1.0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(mean, std, shape)
    return values.astype(dtype)


def wiggle(features, seed=1):
    """Scale and bias that are not one and zero."""
    generator = np.random.default_rng(seed)
    scale = generator.uniform(0.5, 2, features) * generator.choice([-1, 1], features)
    return scale.astype(np.float32), generator.normal(size=features).astype(np.float32)


def output_error(case, want):
    """The absolute error allowed to `y`: rounded once, from inexact statistics.

    The reference rounds its mean to float64, which float64 input far from zero shows.
    """
    largest = 1 + np.abs(want).max(initial=0)
    step = reference.unit_roundoff(case.x.real.dtype)
    count, mean, m2 = reference.moments(case.x, axis=case.axis)
    far = np.abs(mean) / np.sqrt(m2 / np.maximum(count, 1) + 1e-5)
    wanting = 4 * reference.unit_roundoff(np.dtype(np.float64)) * far.max(initial=0)
    return largest * (2 * step + 4 * case.error + wanting)


def assert_normalized(y, want, case, where=None):
    error = np.abs(reference.wide(y) - want)
    if where is not None:
        error = np.where(where, error, 0)
    assert (error <= output_error(case, want)).all(), error.max()


def check_output(case):
    scale, bias = wiggle(case.features)
    with jax.enable_x64(case.x.dtype == np.float64):
        state = jaxbn.init_state(case.features)
        y, _ = train(jnp.asarray(case.x), state, scale, bias, axis=case.axis)
    assert y.dtype == case.x.dtype and y.shape == case.x.shape
    assert_normalized(
        y, reference.batch_norm(case.x, scale, bias, axis=case.axis), case
    )


@given(case=few_shapes.cases(dtypes=strategies.ALL_FLOATS, masked=False))
def test_output_matches_the_float64_reference(case):
    check_output(case)


@pytest.mark.slow
@given(case=strategies.cases(strategies.ALL_FLOATS, masked=False))
def test_output_of_every_layout_matches_the_float64_reference(case):
    check_output(case)


@functools.partial(jax.jit, static_argnames="axis")
def masked_step(x, state, scale, bias, valid, **options):
    """y, the state, and the gradient of half the sum of the squared valid outputs."""

    def loss(x):
        y, new = jaxbn.batch_norm(x, state, scale, bias, **options)
        return jnp.sum(jnp.where(valid, y.astype(jnp.float32), 0) ** 2) / 2, (y, new)

    gradient, (y, new) = jax.grad(loss, has_aux=True)(x)
    return y, new, gradient


def step_of(case, x):
    scale, bias = wiggle(case.features)
    valid = np.broadcast_to(case.where, case.x.shape)
    state = jaxbn.init_state(case.features)
    return masked_step(x, state, scale, bias, valid, **case.options)


def valid_channels(case):
    """Where a channel has at least two values that are not all the same."""
    count, _, m2 = reference.moments(case.x, **case.expected)
    over = reference.rows(case.x, case.axis)
    return np.expand_dims((count > 1) & (m2 > 0), over) & np.ones_like(case.x, bool)


def check_masked_output(case):
    y, *_ = step_of(case, case.x)
    want = reference.batch_norm(case.x, *wiggle(case.features), **case.expected)
    # Masked rows are normalized too, but only valid ones bound the size of y.
    assert_normalized(y, want, case, valid_channels(case))


@given(case=few_shapes.cases(masked=True))
def test_masked_output_matches_the_float64_reference(case):
    check_masked_output(case)


@pytest.mark.slow
@given(case=strategies.cases(masked=True))
def test_masked_output_of_every_layout_matches_the_float64_reference(case):
    check_masked_output(case)


@given(case=few_shapes.cases(masked=True), bad=st.sampled_from([np.nan, -np.inf, 6e4]))
def test_masked_values_reach_neither_output_nor_state(case, bad):
    spoiled = np.where(case.where, case.x, np.array(bad, case.x.dtype))
    got, new, _ = step_of(case, spoiled)
    want, expected, _ = step_of(case, case.x)
    valid = np.broadcast_to(case.where, case.x.shape)
    np.testing.assert_array_equal(np.asarray(got)[valid], np.asarray(want)[valid])
    chex.assert_trees_all_equal(new, expected)


@given(case=few_shapes.cases(masked=True))
def test_nan_at_masked_positions_never_reaches_a_gradient(case):
    spoiled = np.where(case.where, case.x, np.array(np.nan, case.x.dtype))
    *_, gradient = step_of(case, spoiled)
    assert np.isfinite(reference.wide(gradient)).all()


@given(case=few_shapes.cases(masked=False), seed=strategies.seeds)
def test_shuffling_the_rows_shuffles_the_output(case, seed):
    row = reference.rows(case.x, case.axis)[0]
    order = np.random.default_rng(seed).permutation(case.x.shape[row])
    scale, bias = wiggle(case.features)
    mixed = case.x.take(order, row)
    got, _ = train(mixed, jaxbn.init_state(case.features), scale, bias, axis=case.axis)
    want = reference.batch_norm(case.x, scale, bias, axis=case.axis)
    assert_normalized(got, want.take(order, row), case)


FACTORS = (0.25, 1.0, 2.0, 64.0)


@jax.jit
def scaled_with_epsilon(x, state):
    # A power of two is exact in x; epsilon must follow it.
    return [
        jaxbn.batch_norm(x * factor, state, axis=1, epsilon=EPSILON * factor**2)[0]
        for factor in FACTORS
    ]


@given(seed=strategies.seeds)
def test_output_is_invariant_to_the_scale_of_the_input(seed):
    kind = few_shapes.Kind((2, 3, 5), 1, few_shapes.F32, ())
    x = few_shapes.batch(kind, np.random.default_rng(seed))
    want = reference.batch_norm(x, axis=1)
    for y in scaled_with_epsilon(x, jaxbn.init_state(3)):
        assert_normalized(y, want, strategies.Case(x, 1, None))


def test_training_is_moments_then_normalize():
    @jax.jit
    def both_ways(x, state, scale, bias):
        batch = jaxbn.moments(x)
        y = jaxbn.normalize(x, batch.mean, batch.m2 / batch.count, scale, bias)
        return jaxbn.batch_norm(x, state, scale, bias), (y, jaxbn.update(state, batch))

    (y, new), (want, updated) = both_ways(
        draw((16, 3), mean=2), jaxbn.init_state(3), *wiggle(3)
    )
    chex.assert_trees_all_close(y, want, atol=32 * 2.0**-24 * np.abs(want).max())
    chex.assert_trees_all_close(new, updated, rtol=32 * 2.0**-24)


RATIOS = [0, 1e1, 1e2, 1e3, 1e4, 1e5]


def contract(ratio):
    """The error the contract allows: 5e-6 at 0, 1e-3 at 1e5, linear between."""
    return 5e-6 + 1e-8 * ratio * (1 - 5e-3)


def badly_centered(ratio, shape):
    spread = 10.0 ** np.linspace(-3, 3, shape[-1])
    values = np.random.default_rng(0).normal(ratio, 1, shape) * spread
    return values.astype(np.float32)


def worst_error(y, x):
    # Where std < 1 epsilon would hide errors: the variance is much larger here.
    return np.abs(np.asarray(y) - reference.batch_norm(x, epsilon=EPSILON)).max()


@pytest.mark.parametrize("rows", [8, 4096])
@pytest.mark.parametrize("ratio", RATIOS)
def test_first_step_is_right_however_far_the_mean_is(ratio, rows):
    x = badly_centered(ratio, (rows, 7))
    y, _ = train(x, jaxbn.init_state(7))
    assert worst_error(y, x) <= contract(ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_later_steps_are_right_however_far_the_mean_is(ratio):
    first, second = np.split(badly_centered(ratio, (1024, 7)), 2)
    _, state = train(first, jaxbn.init_state(7))
    y, _ = train(second, state)
    assert worst_error(y, second) <= contract(ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_state_from_elsewhere_costs_no_accuracy(ratio):
    x = badly_centered(ratio, (512, 7))
    wrong = np.full(7, -3e4), np.full(7, 1e-3), np.ones(7)
    y, _ = train(x, jaxbn.BatchNormState(*(v.astype(np.float32) for v in wrong)))
    assert worst_error(y, x) <= contract(ratio)


@jax.jit
def train_together(x, state):
    layer = functools.partial(jaxbn.batch_norm, axis_name="i")
    return jax.vmap(layer, (0, None), axis_name="i")(x, state)


@pytest.mark.parametrize("ratio", RATIOS)
def test_synchronised_first_step_is_right_however_far_the_mean_is(ratio):
    x = badly_centered(ratio, (8, 64, 7))
    y, _ = train_together(x, jaxbn.init_state(7))
    assert worst_error(np.reshape(y, (512, 7)), x.reshape(512, 7)) <= contract(ratio)


@jax.jit
def gradients(x, scale, bias, ct):
    def loss(x, scale, bias):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(x.shape[-1]), scale, bias)
        return jnp.sum(y * ct)

    return jax.grad(loss, (0, 1, 2))(x, scale, bias)


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients_are_right_however_far_the_mean_is(ratio):
    x = badly_centered(ratio, (256, 7))
    ct = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    scale, bias = wiggle(7)
    got = gradients(x, scale, bias, ct)
    for value, want in zip(got, reference.gradients(x, ct, scale), strict=True):
        size = np.abs(want).max(0)
        assert (np.abs(value - want) <= 16 * contract(ratio) * size).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 3, 5000])
def test_a_constant_channel_gives_the_bias(dtype, rows):
    # 1 / sqrt(epsilon) magnifies an error of the mean, which is below |x| eps^2 here.
    dtype = np.dtype(jnp.dtype(dtype))
    x = np.broadcast_to([0.0, 1.5, 1e4, 1 / 3] * 2, (rows, 8)).astype(dtype)
    bias = np.repeat(np.float32([0.5, -2.0]), 4)
    y, _ = train(x, jaxbn.init_state(8), np.ones(8, np.float32), bias)
    want = np.broadcast_to(bias.astype(dtype), y.shape)
    np.testing.assert_array_equal(reference.wide(y), reference.wide(want))


@pytest.mark.parametrize("rows", [70_001, 1_000_003])
def test_a_long_constant_channel_of_16_bits_gives_the_bias(rows):
    x = np.full((rows, 1), 1e4, few_shapes.BF16)
    y, state = train(x, jaxbn.init_state(1))
    later, _ = train(x, state)
    for output in (y, later):
        assert np.abs(np.asarray(output, np.float32)).max() <= 1e-3


def test_a_denormal_variance_is_finite_and_near_zero():
    x = draw((64, 2), std=1e-21)
    y, state = train(x, jaxbn.init_state(2))
    assert np.isfinite(state.var).all()
    np.testing.assert_allclose(y, reference.batch_norm(x), atol=2.0**-24)


def test_a_variance_far_below_epsilon_is_normalized_by_epsilon():
    x = draw((64, 2), mean=1, std=1e-4)
    y, _ = train(x, jaxbn.init_state(2))
    want = reference.batch_norm(x, epsilon=1e-5)
    assert np.abs(want).max() < 0.2
    np.testing.assert_allclose(y, want, atol=5e-6)


def test_one_row_gives_the_bias():
    x, bias = draw((1, 3), mean=5), np.float32([1.0, 2.0, 3.0])
    y, state = train(x, jaxbn.init_state(3), np.ones(3, np.float32), bias)
    np.testing.assert_array_equal(y, bias[None])
    np.testing.assert_array_equal(state.var, np.zeros(3))


def test_one_row_has_finite_gradients():
    @jax.jit
    @jax.grad
    def gradient(x):
        return jnp.sum(jaxbn.batch_norm(x, jaxbn.init_state(3))[0] ** 2 * 0.5)

    np.testing.assert_array_equal(gradient(draw((1, 3), mean=5)), np.zeros((1, 3)))


def test_no_rows_give_no_output_and_leave_the_state():
    state = jaxbn.BatchNormState(*np.float32([[1] * 3, [2] * 3, [1] * 3]))
    y, new = train(np.zeros((0, 3), np.float32), state)
    assert y.shape == (0, 3)
    chex.assert_trees_all_equal(new, jax.tree.map(jnp.asarray, state))


@pytest.mark.parametrize("mean", [0, 100])
def test_ten_million_rows_keep_their_accuracy(mean):
    x = np.random.default_rng(0).standard_normal((10_000_000, 1), np.float32)
    x += np.float32(mean)
    y, state = train(x, jaxbn.init_state(1))
    average = x.mean(dtype=np.float64)
    want = x - average
    var = np.square(want).mean()
    want /= np.sqrt(var + EPSILON)
    want -= np.asarray(y)
    assert np.abs(want, out=want).max() <= contract(mean)
    np.testing.assert_allclose(state.var, [var], rtol=1e-5)


def test_a_channel_without_valid_values_uses_the_running_statistics():
    x, where = draw((6, 2), mean=3), np.array([[True, False]])
    state = jaxbn.BatchNormState(*np.float32([[9, 2], [4, 4], [1, 1]]))

    @jax.jit
    def both_ways(x, state):
        want = jaxbn.batch_norm_inference(x, state)
        return *jaxbn.batch_norm(x, state, where=jnp.asarray(where)), want

    y, new, want = both_ways(x, state)
    np.testing.assert_allclose(y[:, 1], want[:, 1], rtol=4 * 2.0**-24)
    chex.assert_trees_all_equal([np.asarray(s)[1] for s in new], [s[1] for s in state])


def test_a_fully_masked_batch_has_finite_gradients():
    @jax.jit
    @jax.grad
    def gradient(x):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(2), where=jnp.zeros((6, 1), bool))
        return jnp.sum(y**2)

    assert np.isfinite(gradient(draw((6, 2)))).all()


@functools.cache
def gradient_case():
    """A batch and the gradient of a random linear function of its output."""
    x, ct = draw((32, 3), mean=2), draw((32, 3), seed=2)
    scale, _ = wiggle(3)
    dx, _, _ = gradients(x, scale, np.zeros(3, np.float32), ct)
    return x, np.asarray(dx)


def test_the_input_gradient_sums_to_zero():
    _, dx = gradient_case()
    assert np.abs(np.sum(dx, 0)).max() <= 32 * 2.0**-24 * np.abs(dx).max() * 8


def test_the_input_gradient_is_orthogonal_to_the_normalized_input():
    x, dx = gradient_case()
    normal = reference.batch_norm(x, epsilon=0)
    # Exactly orthogonal for epsilon 0; else a share epsilon / var of it is left.
    share = EPSILON / reference.moments(x).m2.min() * 32
    limit = 32 * (32 * 2.0**-24 + share) * np.abs(dx).max()
    assert np.abs((reference.wide(dx) * normal).sum(0)).max() <= limit


def residual_leaves(function, *arguments):
    """The arrays that `jax.vjp` keeps, as shapes: nothing has to run."""
    return jax.tree.leaves(
        jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *arguments)
    )


def bytes_of(leaves):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("jit", [False, True])
def test_residuals_are_the_input_and_vectors(dtype, activation, masked, jit):
    rows, channels = 4096, 8
    x = jax.ShapeDtypeStruct((rows, channels), dtype)
    where = jnp.asarray(np.arange(rows)[:, None] < 4000) if masked else None
    state = jaxbn.init_state(channels)

    def layer(x, scale, bias):
        return jaxbn.batch_norm(
            x, state, scale, bias, activation=activation, where=where
        )[0]

    layer = jax.jit(layer) if jit else layer
    vector = jax.ShapeDtypeStruct((channels,), jnp.float32)
    leaves = residual_leaves(layer, x, vector, vector)
    large = [leaf for leaf in leaves if leaf.size >= rows]
    assert [leaf.dtype for leaf in large if leaf.size == x.size] == [x.dtype]
    masks = [leaf for leaf in large if leaf.size < x.size]
    assert all(leaf.dtype == jnp.bool_ for leaf in masks)
    assert len(masks) <= masked
    assert bytes_of(leaf for leaf in leaves if leaf.size < rows) <= 32 * channels * 4


def test_residuals_with_an_added_array_hold_no_normalized_copy():
    x = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    state = jaxbn.init_state(8)

    def layer(x, residual):
        return jaxbn.batch_norm(x, state, residual=residual, activation="relu")[0]

    leaves = residual_leaves(layer, x, x)
    assert sum(leaf.size >= 4096 for leaf in leaves) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activation_follows_the_residual(dtype):
    x = draw((64, 3), mean=2).astype(jnp.dtype(dtype))
    residual = draw((64, 3), seed=2).astype(x.dtype)
    scale, bias = wiggle(3)

    @jax.jit
    def all_of_them(x, residual, scale, bias):
        def one(activation, added):
            return jaxbn.batch_norm(
                x, jaxbn.init_state(3), scale, bias, activation=activation,
                residual=residual if added else None,
            )[0]  # fmt: skip

        names = [name for name in reference.ACTIVATIONS if name]
        found = {name: [one(name, added) for added in (0, 1)] for name in names}
        return [one(None, added) for added in (0, 1)], found

    plain, found = all_of_them(x, residual, scale, bias)
    assert set(found) == {"relu", "relu6", "silu", "leaky_relu"}
    z = reference.batch_norm(x, scale, bias)
    case = strategies.Case(x, -1, None)
    for activation, outputs in ((None, plain), *found.items()):
        for y, added in zip(outputs, (0, 1), strict=True):
            want = reference.ACTIVATIONS[activation](
                z + added * reference.wide(residual)
            )
            assert y.dtype == x.dtype, (activation, added)
            assert_normalized(y, want, case)


def test_an_activation_may_be_any_elementwise_function():
    x, state = draw((8, 3)), jaxbn.init_state(3)
    got, _ = jax.jit(functools.partial(jaxbn.batch_norm, activation=jnp.tanh))(x, state)
    want = np.tanh(reference.batch_norm(x))
    np.testing.assert_allclose(got, want, atol=32 * 2.0**-24)


def test_complex_input_is_normalized_by_its_modulus():
    x = draw((64, 3), mean=2) + np.complex64(1j) * draw((64, 3), seed=3, mean=-1)
    state = jaxbn.init_state(3, dtype=jnp.complex64)
    with jax.numpy_dtype_promotion("standard"):  # real variance, complex mean
        y, new = train(x, state)
    want = reference.batch_norm(x)
    case = strategies.Case(x, -1, None)
    assert_normalized(y, want, case)
    assert new.mean.dtype == jnp.complex64 and new.var.dtype == jnp.float32


def test_masked_positions_of_complex_input_are_normalized_like_others():
    x = draw((8, 3), mean=2) + np.complex64(1j) * draw((8, 3), seed=3, mean=-1)
    x[7] = np.nan
    where, state = np.arange(8)[:, None] < 6, jaxbn.init_state(3, dtype=jnp.complex64)
    with jax.numpy_dtype_promotion("standard"):
        y, _ = jaxbn.batch_norm(x, state, where=where)
        slope = jax.grad(
            lambda x: jaxbn.batch_norm(x, state, where=where)[0][6, 0].real
        )
        dx = slope(x)
    mean = x[:6].mean(0)
    std = np.sqrt((abs(x[:6] - mean) ** 2).mean(0) + 1e-5)
    np.testing.assert_allclose(y[:7], (x[:7] - mean) / std, rtol=1e-5)
    np.testing.assert_allclose(dx[6, 0], 1 / std[0], rtol=1e-5)
    assert np.isfinite(dx).all()


def test_no_gradient_flows_into_or_out_of_the_running_state():
    x = draw((8, 3))
    state = jaxbn.BatchNormState(*np.ones((3, 3), np.float32))

    @jax.jit
    def gradient(x, state, weights):
        def loss(x, state):
            y, new = jaxbn.batch_norm(x, state)
            leaves = zip(weights, new, strict=True)
            return jnp.sum(y**3) + 1e3 * sum(w * jnp.sum(leaf) for w, leaf in leaves)

        return jax.grad(loss, (0, 1))(x, state)

    want, _ = gradient(x, state, np.zeros(3, np.float32))
    for leaf, weights in zip(state._fields, np.eye(3, dtype=np.float32), strict=True):
        dx, d_state = gradient(x, state, weights)
        np.testing.assert_allclose(dx, want, atol=32 * 2.0**-24, err_msg=leaf)
        chex.assert_trees_all_equal(d_state, jax.tree.map(jnp.zeros_like, state))


def test_remat_updates_the_state_once():
    x, state = draw((8, 3), mean=1), jaxbn.init_state(3)

    def loss(layer, x):
        y, new = layer(x, state)
        return jnp.sum(y**3), new

    @jax.jit
    def with_and_without(x):
        layers = jaxbn.batch_norm, jax.checkpoint(jaxbn.batch_norm)
        return [jax.grad(functools.partial(loss, f), has_aux=True)(x) for f in layers]

    plain, again = with_and_without(x)
    chex.assert_trees_all_equal(again[1].count, jnp.ones(3))
    chex.assert_trees_all_close(again, plain, atol=32 * 2.0**-24)


def test_scan_updates_the_state_once_a_step():
    batches, state = draw((5, 8, 3), mean=1), jaxbn.init_state(3)

    def step(state, x):
        y, state = jaxbn.batch_norm(x, state)
        return state, y

    got, ys = jax.jit(lambda s, xs: jax.lax.scan(step, s, xs))(state, batches)
    expected = []
    for x in batches:
        y, state = train(x, state)
        expected.append(np.asarray(y))
    np.testing.assert_array_equal(got.count, np.full(3, 5.0))
    chex.assert_trees_all_close((got, ys), (state, np.stack(expected)), atol=1e-6)


def test_several_steps_compile_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(x, state):
        return jaxbn.batch_norm(x, state)[1]

    chex.clear_trace_counter()
    state = jaxbn.init_state(3)
    for seed in range(4):
        state = step(draw((8, 3), seed=seed), state)
    np.testing.assert_array_equal(state.count, np.full(3, 4.0))


class TestVariants(chex.TestCase):
    """The layer is the same function whichever way JAX runs it."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=False)
    def test_the_layer_is_the_same_jitted_or_not(self):
        x, scale = draw((8, 3), mean=2), jnp.array([1.0, 2.0, 3.0])
        y, state = self.variant(jaxbn.batch_norm)(x, jaxbn.init_state(3), scale)
        want = reference.batch_norm(x, scale)
        np.testing.assert_allclose(y, want, atol=64 * 2.0**-24)
        np.testing.assert_allclose(state.mean, np.mean(x, 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", strategies.FLOATS, ids=str)
def test_output_has_the_type_of_the_input_and_state_stays_float32(dtype):
    x, state = jax.ShapeDtypeStruct((8, 3), dtype), jaxbn.init_state(3)
    y, new = jax.eval_shape(jaxbn.batch_norm, x, state, *wiggle(3))
    assert y.dtype == x.dtype
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_parameters_of_16_bits_do_not_lower_the_precision_of_statistics():
    x = draw((512, 2), mean=300)
    half = np.ones(2, few_shapes.BF16)
    y, _ = train(x, jaxbn.init_state(2), half, half * 0)
    assert np.abs(np.asarray(y) - reference.batch_norm(x)).max() <= contract(300)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_wider_parameters_have_gradients_in_their_own_type(dtype):
    """float64 parameters, as `jnp.ones` makes them in 64-bit mode."""
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((16, 3), dtype)
        state = jaxbn.init_state(3)

        def loss(x, scale, bias):
            return jnp.sum(jnp.sin(jaxbn.batch_norm(x, state, scale, bias)[0]))

        for kind in ("float32", "float64"):
            parameters = [jax.ShapeDtypeStruct((3,), kind)] * 2
            found = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), x, *parameters)
            assert [g.dtype for g in found] == [
                jnp.dtype(dtype),
                *[jnp.dtype(kind)] * 2,
            ]


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_jit_may_be_disabled(masked):
    x, state = draw((8, 3), mean=5.0), jaxbn.init_state(3)
    where = jnp.asarray(np.arange(8)[:, None] < 5) if masked else None

    def layer(x):
        return jaxbn.batch_norm(x, state, where=where, activation="silu")

    @jax.jit
    def results(x):
        gradient = jax.grad(lambda x: jnp.square(layer(x)[0]).sum())(x)
        return layer(x), gradient, jaxbn.batch_norm_inference(x, state)

    want = results(x)
    with jax.disable_jit():
        assert jax.eval_shape(layer, x)[0].shape == x.shape
        chex.assert_trees_all_close(results(x), want, rtol=1e-6, atol=1e-6)


class Unhashable:
    """A PReLU as an object that compares by value."""

    def __init__(self, slope):
        self.slope = slope

    def __eq__(self, other):
        return self.slope == other.slope

    def __call__(self, z):
        return jnp.where(z > 0, z, self.slope * z)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("make", [Unhashable, lambda slope: Unhashable(slope).__call__])
def test_an_activation_may_have_a_learned_slope(make, joined):
    x, state = draw((8, 3)), jaxbn.init_state(3)
    residual = jnp.asarray(draw((8, 3), seed=1)) if joined else None

    def loss(slope, x, layer):
        y = layer(x, make(slope))
        return jnp.square(y).sum() + y.sum()

    def trained(x, activation):
        return jaxbn.batch_norm(x, state, activation=activation, residual=residual)[0]

    def composed(x, activation):
        y = jaxbn.batch_norm(x, state)[0]
        return activation(y if residual is None else y + residual)

    def evaluated(x, activation):
        return jaxbn.batch_norm_inference(x, state, activation=activation)

    def plain(x, activation):
        return activation(jaxbn.batch_norm_inference(x, state))

    layers = (trained, composed) if joined else (trained, composed, evaluated, plain)

    @jax.jit
    def results(slope, x):
        return [jax.value_and_grad(loss, (0, 1))(slope, x, f) for f in layers]

    found = results(0.3, x)
    for got, want in zip(found[::2], found[1::2], strict=True):
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    for layer in () if joined else layers[::2]:
        jax.grad(loss)(0.3, jnp.asarray(x), layer)  # also without jit
