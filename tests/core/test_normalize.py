"""The elementwise stage and inference."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import strategies
from hypothesis import given

import jaxbn

normalize = jax.jit(jaxbn.normalize, static_argnames=("axis", "activation"))


def draw(shape, seed=0, mean=0.0):
    values = np.random.default_rng(seed).normal(mean, 1, shape)
    return jnp.asarray(values, jnp.float32)


def vectors(features, seed=1):
    """A mean, a variance, a scale and a bias."""
    generator = np.random.default_rng(seed)
    mean, bias = generator.normal(size=(2, *features)).astype(np.float32)
    var, scale = generator.uniform(0.5, 2, (2, *features)).astype(np.float32)
    return mean, var, scale, bias


def rounding(x, want):
    """y is rounded once to its type; z once at each of about eight operations."""
    largest = 1 + np.abs(want).max(initial=0) + np.abs(reference.wide(x)).max(initial=0)
    step = reference.unit_roundoff(x.dtype)
    return (
        2 * step * np.abs(want) + 8 * reference.statistics_roundoff(x.dtype) * largest
    )


@given(case=strategies.cases(strategies.ALL_FLOATS, masked=False))
def test_normalize_matches_the_float64_reference(case):
    given_vectors = vectors(case.features)
    with jax.enable_x64(case.x.dtype == np.float64):
        y = normalize(jnp.asarray(case.x), *given_vectors, axis=case.axis)
    want = reference.normalize(case.x, *given_vectors, axis=case.axis)
    assert y.dtype == case.x.dtype
    assert (np.abs(reference.wide(y) - want) <= 2 * rounding(case.x, want)).all()


@given(case=strategies.cases(masked=False))
def test_inference_matches_the_float64_reference(case):
    mean, var, scale, bias = vectors(case.features)
    state = jaxbn.BatchNormState(*map(jnp.asarray, (mean, var, np.ones_like(var))))
    infer = jax.jit(jaxbn.batch_norm_inference, static_argnames="axis")
    y = infer(jnp.asarray(case.x), state, scale, bias, axis=case.axis)
    want = reference.normalize(case.x, mean, var, scale, bias, axis=case.axis)
    assert (np.abs(reference.wide(y) - want) <= 2 * rounding(case.x, want)).all()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_scale_and_bias_may_be_left_out(scaled, shifted):
    mean, var, scale, bias = vectors((3,))
    scale, bias = scale if scaled else None, bias if shifted else None
    x = draw((5, 3))
    got = normalize(x, mean, var, scale, bias)
    want = reference.normalize(x, mean, var, scale, bias)
    assert (np.abs(got - want) <= rounding(x, want)).all()


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "leaky_relu"])
def test_residual_is_added_before_the_activation(activation):
    x, residual = draw((50, 3)), draw((50, 3), seed=5)
    given_vectors = vectors((3,))
    got = normalize(x, *given_vectors, activation=activation, residual=residual)
    z = reference.normalize(x, *given_vectors) + reference.wide(residual)
    want = reference.ACTIVATIONS[activation](z)
    assert (np.abs(got - want) <= 2 * rounding(x, want)).all()


def test_gelu_is_that_of_jax():
    x = draw((50, 3))
    given_vectors = list(map(jnp.asarray, vectors((3,))))
    got = jaxbn.normalize(x, *given_vectors, activation="gelu")
    want = jax.nn.gelu(jaxbn.normalize(x, *given_vectors))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("mean", [100, 1e4])
def test_inference_never_rounds_the_running_mean(mean):
    # A mean of 100.3 in bfloat16 would be off by up to 0.25.
    x = jnp.asarray(draw((64, 1), mean=mean) + 0.3, jnp.bfloat16)
    state = jaxbn.BatchNormState(jnp.array([mean + 0.3]), jnp.ones(1), jnp.ones(1))
    y = jaxbn.batch_norm_inference(x, state)
    want = reference.normalize(x, state.mean, state.var)
    assert (np.abs(reference.wide(y) - want) <= rounding(x, want)).all()


def test_inference_gives_no_gradient_to_the_state():
    state = jaxbn.BatchNormState(jnp.ones(3), jnp.ones(3), jnp.ones(3))

    def loss(state):
        return jnp.sum(jaxbn.batch_norm_inference(draw((4, 3)), state) ** 2)

    chex.assert_trees_all_equal(
        jax.grad(loss)(state), jax.tree.map(jnp.zeros_like, state)
    )


def test_inference_before_any_step_is_the_identity():
    x = draw((4, 3))
    y = jaxbn.batch_norm_inference(x, jaxbn.init_state(3), epsilon=1e-12)
    chex.assert_trees_all_close(y, x, rtol=4 * 2.0**-24)


def test_inference_after_one_step_equals_training_on_that_batch():
    x = draw((64, 3), mean=7)
    y, state = jaxbn.batch_norm(x, jaxbn.init_state(3))
    np.testing.assert_allclose(jaxbn.batch_norm_inference(x, state), y, atol=1e-5)


def test_normalize_follows_an_affine_change_of_the_input():
    # (a x + b - (a m + b)) / sqrt(a^2 v + a^2 e) is the same for every a > 0 and b.
    x = draw((50, 3))
    mean, var, scale, bias = vectors((3,))
    got = jaxbn.normalize(
        x * 4 + 0.5,
        *map(jnp.asarray, (4 * mean + 0.5, 16 * var, scale, bias)),
        epsilon=16e-5,
    )
    want = reference.normalize(x, mean, var, scale, bias)
    assert (np.abs(got - want) <= 4 * rounding(x, want)).all()


def test_normalize_has_the_gradients_of_its_formula():
    x, ct = draw((9, 3), mean=1), draw((9, 3), seed=2)
    mean, var, scale, bias = vectors((3,))
    arrays = tuple(map(jnp.asarray, (x, mean, var, scale, bias)))
    _, vjp = jax.vjp(jaxbn.normalize, *arrays)
    inverse = 1 / np.sqrt(var.astype(np.float64) + 1e-5)
    distance, ct64 = reference.wide(x) - mean, reference.wide(ct)
    want = (
        ct64 * scale * inverse,
        -(ct64.sum(0) * scale * inverse),
        -0.5 * (ct64 * distance).sum(0) * scale * inverse**3,
        (ct64 * distance).sum(0) * inverse,
        ct64.sum(0),
    )
    for got, expected in zip(vjp(ct), want, strict=True):
        limit = 64 * 2.0**-24 * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, atol=limit)


def test_normalize_of_complex_input():
    x = jax.lax.complex(draw((9, 3)), draw((9, 3), seed=1))
    mean = jnp.full(3, 1 + 2j, jnp.complex64)
    var = jnp.full(3, 2.0)
    with jax.numpy_dtype_promotion("standard"):
        got = jaxbn.normalize(x, mean, var)
    want = reference.normalize(x, mean, var)
    assert got.dtype == jnp.complex64
    np.testing.assert_allclose(got, want, atol=32 * 2.0**-24)


def test_vmap_of_normalize_is_a_loop():
    xs, (mean, var, scale, bias) = draw((4, 5, 3)), vectors((3,))
    arrays = tuple(map(jnp.asarray, (mean, var, scale, bias)))
    got = jax.vmap(jaxbn.normalize, (0, None, None, None, None))(xs, *arrays)
    want = jnp.stack([jaxbn.normalize(x, *arrays) for x in xs])
    chex.assert_trees_all_close(got, want, atol=8 * 2.0**-24)


@jax.custom_vjp
def sign(z):
    """The sign, with a straight-through gradient and no other rule."""
    return jnp.sign(z)


sign.defvjp(lambda z: (sign(z), z), lambda z, ct: (jnp.where(jnp.abs(z) < 1, ct, 0),))


def test_an_activation_may_have_a_rule_for_reverse_mode_alone():
    x, (mean, var, *_) = draw((9, 3)), vectors((3,))
    ct = draw((9, 3), seed=2)

    @jax.jit
    def gradients(x):
        def inside(x):
            return jaxbn.normalize(x, mean, var, activation=sign)

        return [
            jax.vjp(f, x)[1](ct)
            for f in (inside, lambda x: sign(jaxbn.normalize(x, mean, var)))
        ]

    chex.assert_trees_all_close(*gradients(x), atol=1e-6)


def without_derivative(z):
    shape = jax.ShapeDtypeStruct(z.shape, z.dtype)
    return jax.pure_callback(np.tanh, shape, z, vmap_method="expand_dims")


def test_an_activation_may_have_no_derivative():
    x, (mean, var, *_) = draw((9, 3)), vectors((3,))
    y = normalize(x, mean, var, activation=without_derivative)
    want = np.tanh(jaxbn.normalize(x, mean, var))
    np.testing.assert_allclose(y, want, atol=1e-6)
    with pytest.raises(ValueError, match="JVP"):
        jax.grad(
            lambda x: jaxbn.normalize(x, mean, var, activation=without_derivative).sum()
        )(x)


def test_normalize_is_linear_in_each_operand_that_is_transposed():
    """For a linear function f, f's transpose is the pullback of f."""
    x, (mean, var, scale, bias) = draw((5, 2, 3)), vectors((3,))
    residual, ct = draw(x.shape, seed=2), draw(x.shape, seed=3)

    def line(x, mean, scale, bias, residual):
        return jaxbn.normalize(x, mean, var, scale, bias, residual=residual)

    def linear(number, *others):
        return line(*[*given[:number], *others, *given[number + len(others) :]])

    given = [x, mean, scale, bias, residual]
    functions = {
        **{str(n): (functools.partial(linear, n), given[n : n + 1]) for n in range(5)},
        "x and mean": (functools.partial(linear, 0), given[:2]),
        "x and residual": (lambda a, b: line(a, mean, scale, bias, b), [x, residual]),
        "vmap": (jax.vmap(lambda x: jaxbn.normalize(x, mean, var), 1), [x]),
        "16 bits": (lambda x: jaxbn.normalize(x, mean, var), [x.astype(jnp.bfloat16)]),
    }

    @jax.jit
    def both(ct):
        found = {}
        for name, (f, operands) in functions.items():
            shape = jax.eval_shape(f, *operands)
            back = ct.reshape(shape.shape).astype(shape.dtype)
            found[name] = (
                jax.linear_transpose(f, *operands)(back),
                jax.vjp(f, *operands)[1](back),
            )
        return found

    for name, (got, want) in both(ct).items():
        chex.assert_trees_all_equal_dtypes(got, want)
        chex.assert_trees_all_close(
            got, want, rtol=1e-5, atol=1e-5, custom_message=name
        )


def test_a_function_with_an_activation_is_not_transposed():
    mean, var, *_ = vectors((3,))
    layer = functools.partial(jaxbn.normalize, mean=mean, var=var, activation="relu")
    with pytest.raises(NotImplementedError, match="`activation` must be None"):
        jax.linear_transpose(layer, draw((5, 3)))(draw((5, 3)))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_training_may_have_a_batch_of_any_size(shape):
    (rows,) = jax.export.symbolic_shape("rows")

    def layer(x):
        y, pull, new = jax.vjp(
            lambda x: jaxbn.batch_norm(x, jaxbn.init_state(3)), x, has_aux=True
        )
        return y, pull(y)[0], new

    x = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
    exported = jax.export.export(jax.jit(layer))(x)
    x = draw((7, *shape), mean=3)
    found, want = exported.call(x), jax.jit(layer)(x)
    np.testing.assert_allclose(found[0], reference.batch_norm(x), atol=1e-5)
    chex.assert_trees_all_close(found, want, atol=1e-5)


def test_sizes_may_be_symbols_where_there_is_a_mask():
    (rows,) = jax.export.symbolic_shape("rows")
    x, where = (
        jax.ShapeDtypeStruct((rows, n), t) for n, t in ((3, "float32"), (1, "bool"))
    )

    def layer(x, where):
        return jaxbn.batch_norm(x, jaxbn.init_state(3), where=where)[0]

    exported = jax.export.export(jax.jit(layer))(x, where)
    x, where = draw((7, 3)), np.arange(7)[:, None] < 5
    want = reference.batch_norm(x, where=where)
    np.testing.assert_allclose(exported.call(x, where), want, atol=1e-5)
