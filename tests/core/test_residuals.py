"""What is kept for the backward pass, and that derivatives do not depend on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx

ROWS, CHANNELS = 12, 5
LEAKY = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
STEEP = functools.partial(jax.nn.leaky_relu, negative_slope=3.0)


def case(dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (ROWS, CHANNELS))
    residual = rng.normal(0, 1, x.shape)
    scale, bias = np.array([1.0, -0.5, 2, 0.3, -1.5]), rng.normal(0, 1, CHANNELS)
    return [jnp.asarray(v, dtype) for v in (x, residual, scale, bias)]


WEIGHTS = np.random.default_rng(1).normal(size=(ROWS, CHANNELS))
VALID = (np.arange(ROWS) % 4 > 0)[:, None]


def loss(mode, activation, joined, where, x, residual, scale, bias):
    y, _ = jaxbn.batch_norm(
        x,
        jaxbn.init_state(CHANNELS),
        scale,
        bias,
        where=where,
        activation=activation,
        residual=residual if joined else None,
        residuals=mode,
    )
    return jnp.sum(jnp.sin(y) * jnp.asarray(WEIGHTS, y.dtype))


def derivatives(f, arguments, directions):
    """First and second order, in both modes of both."""
    every = tuple(range(len(arguments)))
    gradient = jax.grad(f, every)

    def along(*arguments):
        pairs = zip(gradient(*arguments), directions, strict=True)
        return sum(jnp.sum(g * d) for g, d in pairs)

    return {
        "value": f(*arguments),
        "grad": gradient(*arguments),
        "jvp": jax.jvp(f, arguments, directions)[1],
        "forward over reverse": jax.jvp(gradient, arguments, directions)[1],
        "reverse over reverse": jax.grad(along, every)(*arguments),
        "checkpoint": jax.grad(jax.checkpoint(f), every)(*arguments),
    }


QUICK = [
    ("output", None, False, None),
    ("output", LEAKY, True, VALID),
    ("output", STEEP, False, VALID),
    ("recompute", "gelu", True, VALID),
]
KINDS = [("output", a) for a in (None, "leaky_relu", LEAKY)] + [("recompute", None)]


@pytest.mark.parametrize(("mode", "activation", "joined", "where"), QUICK)
def test_derivatives_are_those_of_the_default(mode, activation, joined, where):
    check_derivatives(mode, activation, joined, where)


@pytest.mark.slow
@pytest.mark.parametrize("where", [None, VALID], ids=["all", "masked"])
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(("mode", "activation"), KINDS)
def test_derivatives_in_every_combination(mode, activation, joined, where):
    check_derivatives(mode, activation, joined, where)


def check_derivatives(mode, activation, joined, where):
    with jax.enable_x64(True):
        arguments = tuple(case())
        directions = tuple(jnp.cos(3 * a) for a in arguments)
        where = None if where is None else jnp.asarray(where)
        want, got = (
            derivatives(
                functools.partial(loss, kept, activation, joined, where),
                arguments,
                directions,
            )
            for kept in ("input", mode)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            got,
            want,
        )


@pytest.mark.parametrize("absent", ["scale", "bias", "both"])
def test_scale_and_bias_may_be_absent(absent):
    x, _, scale, bias = case(np.float32)
    scale = None if absent in ("scale", "both") else scale
    bias = None if absent in ("bias", "both") else bias

    def gradient(mode):
        return jax.grad(lambda x: loss(mode, None, False, None, x, x, scale, bias))(x)

    want = gradient("input")
    np.testing.assert_allclose(gradient("output"), want, rtol=2e-5, atol=2e-5)


def test_masked_values_may_be_anything():
    x, _, scale, bias = case(np.float32)
    broken = jnp.where(VALID, x, jnp.nan)

    def gradient(x, mode):
        def valid_part(x):
            y, _ = jaxbn.batch_norm(
                x, jaxbn.init_state(CHANNELS), scale, bias, where=jnp.asarray(VALID),
                residuals=mode,
            )  # fmt: skip
            return jnp.sum(jnp.where(VALID, y, 0) * jnp.asarray(WEIGHTS, y.dtype))

        return jnp.where(VALID, jax.grad(valid_part)(x), 0)

    want = gradient(x, "input")
    np.testing.assert_allclose(gradient(broken, "output"), want, rtol=2e-5, atol=2e-5)


def test_under_vmap_and_jit_and_synchronised():
    x, residual, scale, bias = case(np.float32)
    x, residual = (v.reshape(3, 4, CHANNELS) for v in (x, residual))

    def total(x, residual, scale, bias, *, mode):
        def member(x, residual):
            return jaxbn.batch_norm(
                x, jaxbn.init_state(CHANNELS), scale, bias, axis_name="i",
                activation="leaky_relu", residual=residual, residuals=mode,
            )[0]  # fmt: skip

        y = jax.jit(jax.vmap(member, axis_name="i"))(x, residual)
        return jnp.sum(jnp.sin(y))

    def gradient(mode):
        f = functools.partial(total, mode=mode)
        return jax.grad(f, (0, 1, 2, 3))(x, residual, scale, bias)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=5e-5, atol=5e-5),
        gradient("output"),
        gradient("input"),
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_under_shard_map_with_two_all_reduces(check_vma):
    x, residual, scale, bias = case(np.float32)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x, residual, scale, bias, *, mode):
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P("d"), P("d"), P(), P()),
            out_specs=P("d"), check_vma=check_vma,
        )  # fmt: skip
        def apply(x, residual, scale, bias):
            return jaxbn.batch_norm(
                x, jaxbn.init_state(CHANNELS), scale, bias, axis_name="d",
                activation="leaky_relu", residual=residual, residuals=mode,
            )[0]  # fmt: skip

        return jnp.sum(jnp.sin(apply(x, residual, scale, bias)))

    def gradient(mode):
        f = functools.partial(step, mode=mode)
        return jax.jit(jax.grad(f, (0, 1, 2, 3)))

    arguments = (x, residual, scale, bias)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=5e-5, atol=5e-5),
        gradient("output")(*arguments),
        gradient("input")(*arguments),
    )
    text = {m: str(gradient(m).trace(*arguments).jaxpr) for m in ("input", "output")}
    assert text["output"].count(" psum") <= text["input"].count(" psum")


# A small net: what it keeps is counted in arrays of the size of an activation.


def net(mode, activation, params, x):
    """Two layers, each before another matrix, and a sum at the end."""
    first, second, third = params
    for weights in (first, second):
        x, _ = jaxbn.batch_norm(
            x @ weights, jaxbn.init_state(16), jnp.ones(16), jnp.zeros(16),
            activation=activation, residuals=mode,
        )  # fmt: skip
    return jnp.sum(x @ third)


def full_arrays(function):
    """How many arrays of the size of an activation `jax.vjp` keeps, in bfloat16."""
    x = jax.ShapeDtypeStruct((64, 16), jnp.bfloat16)
    params = [jax.ShapeDtypeStruct((16, 16), jnp.bfloat16)] * 3

    def kept(params, x):
        return jax.vjp(lambda p: function(p, x), params)[1]

    with jax.numpy_dtype_promotion("standard"):
        leaves = jax.tree.leaves(jax.eval_shape(kept, params, x))
    large = [leaf for leaf in leaves if leaf.size >= 64 * 16]
    assert {leaf.dtype for leaf in large} == {jnp.dtype(jnp.bfloat16)}
    return sum(leaf.size for leaf in large) // (64 * 16)


@pytest.mark.parametrize(
    ("mode", "activation", "policy", "want"),
    [
        ("input", "relu", None, 1 + 2 + 2),  # the data, and two of each x and y
        ("recompute", "relu", None, 1 + 2 + 2),
        ("recompute", "relu", jaxbn.recompute_policy, 1 + 2),  # the x
        ("output", "leaky_relu", None, 1 + 2),  # the y
        ("output", None, None, 1 + 2),
    ],
)
def test_arrays_kept_by_a_small_net(mode, activation, policy, want):
    function = functools.partial(net, mode, activation)
    if policy is not None:
        function = jax.checkpoint(function, policy=policy)
    assert full_arrays(function) == want


def test_the_policy_keeps_what_a_residual_was_added_to():
    def blocks(params, x):
        for weights in params:
            x, _ = jaxbn.batch_norm(
                x @ weights, jaxbn.init_state(16), residual=x, activation="relu",
                residuals="recompute",
            )  # fmt: skip
        return jnp.sum(x)

    assert full_arrays(jax.checkpoint(blocks, policy=jaxbn.recompute_policy)) == 6


def test_the_policy_changes_no_derivative():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    params = [jnp.asarray(rng.normal(size=(16, 16)), jnp.float32) for _ in range(3)]
    function = functools.partial(net, "recompute", "relu")
    saving = jax.checkpoint(function, policy=jaxbn.recompute_policy)
    want, got = (jax.jit(jax.grad(f))(params, x) for f in (function, saving))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want
    )


def test_bfloat16_gradients_are_as_near_as_the_default_is():
    exact = case(np.float32)
    rounded = [*(v.astype(jnp.bfloat16) for v in exact[:2]), *exact[2:]]

    def gradient(mode, arguments):
        f = functools.partial(loss, mode, "leaky_relu", False, None)
        return jax.grad(f, (0, 2, 3))(*arguments)

    wide = [v.astype(jnp.float32) for v in rounded]
    want = gradient("input", wide)
    for mode in ("input", "output"):
        for a, b in zip(gradient(mode, rounded), want, strict=True):
            error = np.abs(np.asarray(a, np.float32) - b).max()
            assert error < 0.02 * np.abs(b).max()


def test_a_scale_near_zero_counts_as_the_smallest():
    x, _, _, bias = case(np.float32)
    small = jnp.asarray([0.0, -0.0, 1e-5, -1e-5, 0.5], jnp.float32)
    used = jnp.asarray([1, 1, 1, -1, 512], jnp.float32) * 2.0**-10

    def value_and_grad(mode, scale):
        f = functools.partial(loss, mode, None, False, None)
        return jax.value_and_grad(f, (0, 2, 3))(x, x, scale, bias)

    want, got = value_and_grad("input", used), value_and_grad("output", small)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    assert np.all(np.abs(got[1][1]) > 0)  # A scale of zero can leave it.


@pytest.mark.parametrize("mode", ["output", "recompute"])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_modules_hand_the_mode_on(kind, mode):
    x = case(np.float32)[0]
    options = {"activation": "leaky_relu", "use_running_average": False}

    def gradient(residuals):
        if kind == "linen":
            layer = jaxbn.linen.BatchNorm(residuals=residuals, **options)
            variables = layer.init(jax.random.key(0), x)

            def f(x):
                return layer.apply(variables, x, mutable="batch_stats")[0]
        else:
            layer = jaxbn.nnx.BatchNorm(
                CHANNELS, residuals=residuals, rngs=nnx.Rngs(0), **options
            )
            graph, state = nnx.split(layer)

            def f(x):
                return nnx.merge(graph, jax.tree.map(jnp.array, state))(x)

        text = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jnp.sin(f(x)))))(x))
        return text, jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (plain, want), (text, got) = gradient("input"), gradient(mode)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    assert text != plain


def test_messages_name_the_argument():
    x, state = jnp.ones((4, 2)), jaxbn.init_state(2)
    with pytest.raises(ValueError, match="`residuals` must be 'input', 'output' or"):
        jaxbn.batch_norm(x, state, residuals="x")  # pyright: ignore
    for activation in ("relu", jnp.tanh, functools.partial(jax.nn.leaky_relu, x=1)):
        with pytest.raises(NotImplementedError, match="`activation` must have an inv"):
            jaxbn.batch_norm(x, state, activation=activation, residuals="output")
    flat = functools.partial(jax.nn.leaky_relu, negative_slope=0.0)
    with pytest.raises(NotImplementedError, match="`activation` must have an inverse"):
        jaxbn.batch_norm(x, state, activation=flat, residuals="output")
    wave = jaxbn.init_state(2, dtype=jnp.complex64)
    with pytest.raises(NotImplementedError, match="`residuals` must be 'input' for"):
        jaxbn.batch_norm(x.astype(jnp.complex64), wave, residuals="output")
