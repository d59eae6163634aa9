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
        save=mode,
    )
    return jnp.sum(jnp.sin(y) * jnp.asarray(WEIGHTS, y.dtype))


def derivatives(f, arguments, directions, names):
    """First and second order, in both modes of both."""
    every = tuple(range(len(arguments)))
    gradient = jax.grad(f, every)

    def along(*arguments):
        pairs = zip(gradient(*arguments), directions, strict=True)
        return sum(jnp.sum(g * d) for g, d in pairs)

    table = {
        "value": lambda: f(*arguments),
        "grad": lambda: gradient(*arguments),
        "jvp": lambda: jax.jvp(f, arguments, directions)[1],
        "forward over reverse": lambda: jax.jvp(gradient, arguments, directions)[1],
        "reverse over reverse": lambda: jax.grad(along, every)(*arguments),
        "checkpoint": lambda: jax.grad(jax.checkpoint(f), every)(*arguments),
    }
    assert set(names) <= set(table)
    return {name: table[name]() for name in names}


ALL = ("value", "grad", "jvp", "forward over reverse", "reverse over reverse",
       "checkpoint")  # fmt: skip
QUICK = [
    ("output", None, False, None, ("grad", "jvp")),
    ("output", LEAKY, True, VALID, ALL),
    ("output", STEEP, False, VALID, ("value", "grad", "forward over reverse")),
    ("recompute", "gelu", True, VALID, ("value", "grad", "jvp", "checkpoint")),
]
KINDS = [("output", a) for a in (None, "leaky_relu", LEAKY)] + [("recompute", None)]
SLOW = [
    *((*kind, joined, w) for kind in KINDS for joined in (0, 1) for w in (None, VALID)),
    *(row[:-1] for row in QUICK if row[1] in (STEEP, "gelu")),
]


@pytest.mark.parametrize(("mode", "activation", "joined", "where", "names"), QUICK)
def test_derivatives_are_those_of_the_default(mode, activation, joined, where, names):
    check_derivatives(mode, activation, joined, where, names)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "activation", "joined", "where"), SLOW)
def test_derivatives_in_every_combination(mode, activation, joined, where):
    check_derivatives(mode, activation, joined, where, ALL)


def check_derivatives(mode, activation, joined, where, names):
    with jax.enable_x64(True):
        arguments = tuple(case())
        where = None if where is None else jnp.asarray(where)

        @jax.jit
        def with_both(*arguments):
            directions = tuple(jnp.cos(3 * a) for a in arguments)
            return [
                derivatives(
                    functools.partial(loss, kept, activation, joined, where),
                    arguments,
                    directions,
                    names,
                )
                for kept in ("input", mode)
            ]

        want, got = with_both(*arguments)
    for name in want:
        for a, b in zip(*map(jax.tree.leaves, (got[name], want[name])), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)


def test_scale_and_bias_may_be_absent():
    x, _, scale, bias = case(np.float32)

    @jax.jit
    def gradients(x):
        def gradient(mode, **given):
            given = {"scale": None, "bias": None} | given
            return jax.grad(lambda x: loss(mode, None, False, None, x, x, **given))(x)

        return {
            mode: {
                "no bias": gradient(mode, scale=scale),
                "no scale": gradient(mode, bias=bias),
                "neither": gradient(mode),
            }
            for mode in ("input", "output")
        }

    found = gradients(x)
    for name, want in found["input"].items():
        got = found["output"][name]
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=name)


def test_masked_values_may_be_anything():
    x, _, scale, bias = case(np.float32)
    broken = np.where(VALID, x, np.float32(np.nan))

    def gradient(x, mode):
        def valid_part(x):
            y, _ = jaxbn.batch_norm(
                x, jaxbn.init_state(CHANNELS), scale, bias, where=jnp.asarray(VALID),
                save=mode,
            )  # fmt: skip
            return jnp.sum(jnp.where(VALID, y, 0) * jnp.asarray(WEIGHTS, y.dtype))

        return jnp.where(VALID, jax.grad(valid_part)(x), 0)

    @jax.jit
    def of_both(x, broken):
        return gradient(x, "input"), gradient(broken, "output")

    want, got = of_both(x, broken)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_under_vmap_and_jit_and_synchronised():
    x, residual, scale, bias = case(np.float32)
    x, residual = (v.reshape(3, 4, CHANNELS) for v in (x, residual))

    def total(x, residual, scale, bias, *, mode):
        def member(x, residual):
            return jaxbn.batch_norm(
                x, jaxbn.init_state(CHANNELS), scale, bias, axis_name="i",
                activation="leaky_relu", residual=residual, save=mode,
            )[0]  # fmt: skip

        y = jax.jit(jax.vmap(member, axis_name="i"))(x, residual)
        return jnp.sum(jnp.sin(y))

    def gradient(mode):
        return jax.grad(functools.partial(total, mode=mode), (0, 1, 2, 3))

    @jax.jit
    def of_both(*arguments):
        return [gradient(mode)(*arguments) for mode in ("output", "input")]

    got, want = of_both(x, residual, scale, bias)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=5e-5, atol=5e-5), got, want
    )


@pytest.mark.parametrize(
    "check_vma", [True, pytest.param(False, marks=pytest.mark.slow)]
)
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
                activation="leaky_relu", residual=residual, save=mode,
            )[0]  # fmt: skip

        return jnp.sum(jnp.sin(apply(x, residual, scale, bias)))

    def gradient(mode):
        f = functools.partial(step, mode=mode)
        return jax.jit(jax.grad(f, (0, 1, 2, 3)))

    arguments = (x, residual, scale, bias)
    programs = [gradient(m).lower(*arguments).compile() for m in ("output", "input")]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=5e-5, atol=5e-5),
        *(program(*arguments) for program in programs),
    )
    for program in programs:
        assert program.as_text().count(" all-reduce(") == 2


# A small net: what it keeps is counted in arrays of the size of an activation.


def net(mode, activation, params, x):
    """Two layers, each before another matrix, and a sum at the end."""
    first, second, third = params
    for weights in (first, second):
        x, _ = jaxbn.batch_norm(
            x @ weights, jaxbn.init_state(16), jnp.ones(16), jnp.zeros(16),
            activation=activation, save=mode,
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
                save="recompute",
            )  # fmt: skip
        return jnp.sum(x)

    # The data, three x and three y, of which two are inputs of the next block.
    assert full_arrays(jax.checkpoint(blocks, policy=jaxbn.recompute_policy)) == 7


def test_the_policy_changes_no_derivative():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    params = [jnp.asarray(rng.normal(size=(16, 16)), jnp.float32) for _ in range(3)]
    function = functools.partial(net, "recompute", "relu")
    saving = jax.checkpoint(function, policy=jaxbn.recompute_policy)
    pair = jax.jit(lambda *args: [jax.grad(f)(*args) for f in (function, saving)])
    want, got = pair(params, x)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want
    )


def test_bfloat16_gradients_are_as_near_as_the_default_is():
    exact = case(np.float32)
    rounded = [*(v.astype(jnp.bfloat16) for v in exact[:2]), *exact[2:]]

    def gradient(mode, arguments):
        f = functools.partial(loss, mode, "leaky_relu", False, None)
        return jax.grad(f, (0, 2, 3))(*arguments)

    @jax.jit
    def wide_and_rounded(arguments):
        wide = [v.astype(jnp.float32) for v in arguments]
        found = {mode: gradient(mode, arguments) for mode in ("input", "output")}
        return gradient("input", wide), found

    want, found = wide_and_rounded(rounded)
    for mode, got in found.items():
        for a, b in zip(got, want, strict=True):
            error = np.abs(np.asarray(a, np.float32) - b).max()
            assert error < 0.02 * np.abs(b).max(), mode


def test_a_scale_near_zero_counts_as_the_smallest():
    x, _, _, bias = case(np.float32)
    small = jnp.asarray([0.0, -0.0, 1e-5, -1e-5, 0.5], jnp.float32)
    used = jnp.asarray([1, 1, 1, -1, 512], jnp.float32) * 2.0**-10

    def value_and_grad(mode, scale):
        f = functools.partial(loss, mode, None, False, None)
        return jax.value_and_grad(f, (0, 2, 3))(x, x, scale, bias)

    @jax.jit
    def of_both(used, small):
        return value_and_grad("input", used), value_and_grad("output", small)

    want, got = of_both(used, small)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    assert np.all(np.abs(got[1][1]) > 0)  # A scale of zero can leave it.


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_modules_hand_the_mode_on(kind):
    x = case(np.float32)[0]
    options = {"activation": "leaky_relu", "use_running_average": False}

    def gradient(residuals):
        if kind == "linen":
            layer = jaxbn.linen.BatchNorm(save=residuals, **options)
            variables = jax.jit(layer.init)(jax.random.key(0), x)

            def f(x):
                return layer.apply(variables, x, mutable="batch_stats")[0]
        else:
            layer = jaxbn.nnx.BatchNorm(
                CHANNELS, save=residuals, rngs=nnx.Rngs(0), **options
            )
            graph, state = nnx.split(layer)

            def f(x):
                return nnx.merge(graph, jax.tree.map(jnp.array, state))(x)

        program = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))).trace(x)
        return str(program.jaxpr), program.lower().compile()(x)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain, want = gradient("input")
        for mode in ("output", "recompute"):
            text, got = gradient(mode)
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=mode)
            assert text != plain, mode


def test_messages_name_the_argument():
    x, state = jnp.ones((4, 2)), jaxbn.init_state(2)
    with pytest.raises(ValueError, match="`save` must be 'input', 'output' or"):
        jaxbn.batch_norm(x, state, save="x")  # pyright: ignore
    for activation in ("relu", jnp.tanh, functools.partial(jax.nn.leaky_relu, x=1)):
        with pytest.raises(NotImplementedError, match="`activation` must have an inv"):
            jaxbn.batch_norm(x, state, activation=activation, save="output")
    flat = functools.partial(jax.nn.leaky_relu, negative_slope=0.0)
    with pytest.raises(NotImplementedError, match="`activation` must have an inverse"):
        jaxbn.batch_norm(x, state, activation=flat, save="output")
    wave = jaxbn.init_state(2, dtype=jnp.complex64)
    with pytest.raises(NotImplementedError, match="`save` must be 'input' for"):
        jaxbn.batch_norm(x.astype(jnp.complex64), wave, save="output")
