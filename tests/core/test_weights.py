"""Weights: a whole number is as many equal rows, and gradients flow into them."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from sweeps import but_slow

import jaxbn
from jaxbn.backends import merging

SHAPE = (16, 5, 3)
SCALE, BIAS = np.array([1.0, -2.0, 0.5]), np.array([0.1, 0.2, -0.3])


def batch(seed=0, offset=7.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=SHAPE) * [1, 2, 0.5] + offset


def reference(x, w):
    """y, mean and variance in float64, from the definition."""
    x, w = np.asarray(x, np.float64), np.broadcast_to(w, SHAPE).astype(np.float64)
    n = w.sum((0, 1))
    mean = (w * x).sum((0, 1)) / n
    var = (w * (x - mean) ** 2).sum((0, 1)) / n
    return (x - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS, mean, var


@functools.cache
def layer(**options):
    def run(x, weights, where=None):
        arrays = (x, jaxbn.init_state(3), *(jnp.asarray(v, "float32") for v in VECTORS))
        return jaxbn.batch_norm(*arrays, weights=weights, where=where, **options)

    return jax.jit(run)


VECTORS = (SCALE, BIAS)
WEIGHTS = st.sampled_from(["whole", "any", "few", "tiny", "example", "channel"])


def weights_of(kind, seed):
    generator = np.random.default_rng(seed)
    shape = {"example": (16, 1, 1), "channel": SHAPE}.get(kind, (16, 5, 1))
    w = generator.uniform(0, 2, size=shape)
    if kind == "whole":
        w = generator.integers(0, 4, size=shape)
    elif kind == "few":
        w = w * (generator.uniform(size=shape) < 0.2) + (np.arange(16) == 3).reshape(
            -1, 1, 1
        )
    elif kind == "tiny":
        w = w * 1e-4  # less than one row in all
    return w.astype(np.float32)


@hypothesis.given(kind=WEIGHTS, seed=st.integers(0, 99))
def test_weighted_statistics_are_those_of_the_definition(kind, seed):
    x, w = batch(seed).astype(np.float32), weights_of(kind, seed)
    y, state = layer()(x, np.broadcast_to(w, SHAPE))
    want, mean, var = reference(x, w)
    np.testing.assert_allclose(y, want, atol=2e-5 * (1 + abs(want).max()))
    np.testing.assert_allclose(state.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(state.var, var, rtol=1e-4)


def test_large_means_keep_their_digits():
    x = batch(offset=1e5).astype(np.float32)
    w = np.broadcast_to(weights_of("any", 0), SHAPE)
    want, _, var = reference(x, w)
    y, state = layer()(x, w)
    np.testing.assert_allclose(y, want, atol=1e-3 * abs(want).max())
    np.testing.assert_allclose(state.var, var, rtol=1e-3)


def test_whole_weights_equal_repeated_rows():
    x, w = batch().astype(np.float32), weights_of("whole", 1)
    rows = np.repeat(x.reshape(-1, 3), w.ravel().astype(int), 0)
    (_, got), (_, want) = (
        layer(unbiased=True)(x, np.broadcast_to(w, SHAPE)),
        jaxbn.batch_norm(rows, jaxbn.init_state(3), unbiased=True),
    )
    chex.assert_trees_all_close(got, want, rtol=2e-6)


def differentiated(activation):
    """Value, state and gradients, with `implementation="xla"` for equal loops."""

    def loss(x, kind, counting):
        options = {"activation": activation, "implementation": "xla"}
        y, state = jaxbn.batch_norm(
            x, jaxbn.init_state(3), **{kind: counting}, **options
        )
        return jnp.sum(jnp.sin(y)), (y, state)

    return jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_zeros_and_ones_equal_a_mask_bit_for_bit(activation):
    x, where = batch().astype(np.float32), weights_of("few", 2) > 0
    x[0] = np.where(where[0], x[0], np.nan)
    run = differentiated(activation)
    got, want = run(x, "weights", where.astype(np.float32)), run(x, "where", where)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_mask_multiplies_weights():
    x, w, where = batch().astype(np.float32), weights_of("any", 3), np.arange(16) < 9
    where = where.reshape(-1, 1, 1)
    got = layer()(x, w, where)
    chex.assert_trees_all_equal(got, layer()(x, w * where))


def test_no_weight_at_all_is_an_empty_batch():
    x = batch().astype(np.float32)
    y, state = layer()(x, np.zeros((16, 1, 1), np.float32))
    chex.assert_trees_all_equal(state, jaxbn.init_state(3))
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5) * SCALE + BIAS, rtol=1e-6)


def moments_in_lax(x, w):
    """In operations that JAX differentiates."""
    w = jnp.broadcast_to(w, x.shape)
    n = w.sum((0, 1), keepdims=True)
    mean = (w * x).sum((0, 1), keepdims=True) / n
    return n, mean, (w * jnp.abs(x - mean) ** 2).sum((0, 1), keepdims=True)


def plain(x, w, activation):
    n, mean, m2 = moments_in_lax(x, w)
    var = m2 / n
    return activation((x - mean) / jnp.sqrt(var + 1e-5))


def ours(x, w, activation):
    state = jax.tree.map(lambda v: v.astype(x.dtype), jaxbn.init_state(3))
    y, _ = jaxbn.batch_norm(x, state, weights=w, activation=activation)
    return y


@pytest.mark.parametrize(
    "activation", but_slow([jax.nn.relu, jax.nn.silu], [jax.nn.silu])
)
def test_derivatives_by_values_and_weights_are_exact_to_second_order(activation):
    with jax.enable_x64(True):
        x, w = batch(), weights_of("any", 4).astype(np.float64)
        w[2] = 0  # where a gradient flows all the same
        ct = np.random.default_rng(5).normal(size=SHAPE)

        def facts(function):
            def loss(x, w):
                return jnp.sum(function(x, w, activation) * ct)

            def second(x, w):
                slopes = jax.grad(loss, (0, 1))(x, w)
                return sum(jnp.sum(jnp.sin(g)) for g in slopes)

            move = (np.cos(x), np.sin(5 * w))
            first = jax.jvp(loss, (x, w), move)[1]
            return jax.grad(loss, (0, 1))(x, w), jax.grad(second, (0, 1))(x, w), first

        got, want = (jax.jit(lambda f=f: facts(f))() for f in (ours, plain))
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-10)


def test_derivatives_of_weighted_moments():
    def facts(x, w):
        found = jaxbn.moments(x, weights=w)
        return jnp.sum(found.mean * 3 + found.m2 + found.count * 2)

    def in_lax(x, w):
        n, mean, m2 = moments_in_lax(x, w)
        return jnp.sum(mean * 3 + m2 + n * 2)

    with jax.enable_x64(True):
        x, w = batch(), weights_of("any", 6).astype(np.float64)
        got, want = (
            jax.jit(jax.grad(lambda x, w, f=f: jnp.sin(f(x, w)), (0, 1)))(x, w)
            for f in (facts, in_lax)
        )
        chex.assert_trees_all_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("offset", but_slow([0.0, 1e5], [0.0]))
def test_devices_with_other_weights_equal_one_device(offset):
    x = batch(offset=offset).astype(np.float32)
    w = weights_of("any", 7) * 10.0 ** np.arange(-4, 4).repeat(2).reshape(-1, 1, 1)
    w = np.where(np.arange(16).reshape(-1, 1, 1) < 2, 0, w).astype(np.float32)

    def run(x, w, axis_name=None):
        def loss(x, w):
            y, state = jaxbn.batch_norm(
                x, jaxbn.init_state(3), weights=w, axis_name=axis_name
            )
            total = jnp.sum(w * jnp.sin(y))
            return total if axis_name is None else jax.lax.psum(total, "d"), state

        return *jax.grad(loss, (0, 1), has_aux=True)(x, w)[0], loss(x, w)[1]

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        functools.partial(run, axis_name="d"),
        mesh=mesh,
        in_specs=P("d"),
        out_specs=(P("d"), P("d"), P()),
    )
    got, want = jax.jit(mapped)(x, w), jax.jit(run)(x, w)
    _, mean, var = reference(x, w)
    np.testing.assert_allclose(got[2].mean, mean, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(got[2].var, var, rtol=1e-3 if offset else 1e-5)
    error = 2e-2 if offset else 1e-4
    for a, b in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=error * np.abs(b).max())


def identity(z):
    return z


def over_members(x, w, **by):
    """What uses moments that members share; renorm without bounds is plain."""
    state = jaxbn.init_state(3, dtype=x.dtype)
    found = jaxbn.moments(x, weights=w, **by)
    yield jaxbn.batch_norm(x, state, weights=w, **by)[0]
    yield 0 * x + found.mean
    yield 0 * x + found.m2
    if not jnp.iscomplexobj(x):
        variants, by = jaxbn.variants, by | {"weights": w}
        state, bounds = variants.init_renorm_state(3), {"r_max": 1, "d_max": 0}
        yield variants.batch_renorm(x, state, **bounds, **by)[0]
        state = variants.init_domain_state(2, 3)
        yield variants.domain_batch_norm(x, state, domain=0, **by)[0]


def by_definition(x, w):
    _, mean, m2 = moments_in_lax(x, w)
    y = plain(x, w, identity)
    yield from (y, 0 * x + mean, 0 * x + m2, y, y)


@pytest.mark.parametrize("kind", but_slow(["real", "complex"], ["complex"]))
def test_a_member_with_weights_of_zero_has_gradients_like_any_other(kind):
    free = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(True), free[0], free[1]:
        x, w = batch(offset=50.0), weights_of("any", 9).astype(np.float64)
        w[:8] = 0  # all rows of the first two of four members
        if kind == "complex":
            x = x * (1 - 0.5j) + 1j * batch(11)
        ct = np.random.default_rng(10).normal(size=SHAPE)

        def shared(x, w):
            parts = (a.reshape(4, 4, *a.shape[1:]) for a in (x, w))
            run = jax.vmap(lambda *a: [*over_members(*a, axis_name="d")], axis_name="d")
            return [y.reshape(SHAPE) for y in run(*parts)]

        def gradients(function):
            def losses(x, w):
                return jnp.stack(
                    [(ct * (y.real + 2 * y.imag)).sum() for y in function(x, w)]
                )

            return jax.jit(jax.jacrev(losses, (0, 1)))(x, w)

        got = gradients(shared)
        want = gradients(lambda x, w: [*by_definition(x, w)][: len(got[1])])
        chex.assert_trees_all_close(got, want, rtol=1e-7, atol=1e-9)


def test_vmap_shares_weighted_statistics():
    x, w = batch().astype(np.float32), weights_of("any", 8)

    def run(x, w):
        return jaxbn.batch_norm(x, jaxbn.init_state(3), weights=w, axis_name="d")

    parts = (a.reshape(4, 4, *a.shape[1:]) for a in (x, w))
    y, state = jax.jit(jax.vmap(run, axis_name="d", out_axes=(0, None)))(*parts)
    want, mean, _ = reference(x, w)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(y).reshape(SHAPE) * SCALE + BIAS, want, atol=1e-5
    )


def test_counts_beyond_float32_travel_exactly():
    """Three devices with 2^24 + odd values each: float32 would round their sum."""
    counts = jnp.asarray([2.0**24 - 1, 2.0**24 - 3, 2.0**24 - 7], jnp.float32)
    mean = jnp.asarray([1e5, 1e5 + 1, 1e5 - 1], jnp.float32)
    ones = jnp.ones_like(mean)
    parts = merging.Centered(counts, mean, 0 * ones, counts, ones)
    found = merging.merged(parts, lambda v: v.sum(-1), None, encoded=True)
    n, m = np.asarray(counts, np.float64), np.asarray(mean, np.float64)
    want = (n * m).sum() / n.sum()
    m2 = (n + n * (m - want) ** 2).sum()
    assert abs(float(found.center) + float(found.delta) - want) < 1e-5
    np.testing.assert_allclose(found.m2 * found.unit**2, m2, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (-np.ones((16, 1, 1)), ValueError, "`weights` must be finite and not negative"),
        (np.full((16, 1, 1), np.inf), ValueError, "`weights` must be finite and not"),
        (
            np.ones((16, 1, 1)) * 1j,
            TypeError,
            "`weights` must be real numbers",
        ),
        (np.ones((16,)), ValueError, r"`weights.reshape\(\(16, 1, 1\)\)`"),
        ("all", TypeError, "`weights` must be"),
    ],
)
def test_messages(weights, error, message):
    with pytest.raises(error, match=message):
        jaxbn.batch_norm(batch().astype("f"), jaxbn.init_state(3), weights=weights)


def test_the_output_alone_does_not_tell_the_gradient_of_weights():
    x = batch().astype(np.float32)
    with pytest.raises(NotImplementedError, match="`save` must be 'input' or 'recomp"):
        jaxbn.batch_norm(x, jaxbn.init_state(3), weights=np.ones(3), save="output")
