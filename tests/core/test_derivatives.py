"""The table: transformation x implementation x type x mask x synchronisation.

What is right is plain `jnp` in float64, differentiated by JAX; it knows nothing of the
library, and its values and gradients are checked against NumPy first.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxbn

IMPLEMENTATIONS = [n for n, why in jaxbn.implementations().items() if why is None]
MEMBERS, ROWS, CHANNELS = 2, 3, 2
SHAPE = (MEMBERS, ROWS, CHANNELS)


def arguments():
    """x, scale and bias in float64, exact in bfloat16."""
    generator = np.random.default_rng(0)
    values = (
        generator.normal(1, 1, SHAPE),
        np.array([1.5, -0.5]),
        np.array([0.25, -0.75]),
    )
    return [np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64) for v in values]


VALID = np.array([[True, True, True], [True, False, True]])[..., None]
WEIGHTS = np.random.default_rng(1).normal(size=SHAPE)


def plain(x, scale, bias, *, masked, sync):
    """The paper in jnp: statistics over all members if `sync`, else over each."""
    over = (0, 1) if sync else (1,)
    valid = jnp.asarray(VALID if masked else np.ones_like(VALID), x.dtype)
    count = jnp.sum(valid, over, keepdims=True)
    mean = jnp.sum(valid * x, over, keepdims=True) / count
    var = jnp.sum(valid * (x - mean) ** 2, over, keepdims=True) / count
    scale, bias = (v.reshape(1, 1, -1) for v in (scale, bias))
    return (x - mean) / jnp.sqrt(var + 1e-2) * scale + bias


def layer(implementation, *, masked, sync):
    """The same from the library, a member at a time."""

    def member(x, where, scale, bias):
        state = jaxbn.init_state(CHANNELS)
        return jaxbn.batch_norm(
            x,
            state,
            scale,
            bias,
            where=where if masked else None,
            axis_name="i" if sync else None,
            epsilon=1e-2,
            implementation=implementation,
        )[0]

    def apply(x, scale, bias):
        mapped = jax.vmap(member, (0, 0, None, None), axis_name="i")
        return mapped(x, jnp.asarray(VALID), scale, bias)

    return apply


def loss_of(function):
    """A scalar with derivatives of every order in every argument."""

    def loss(x, scale, bias):
        y = function(x, scale, bias)
        y = y.astype(scale.dtype)
        return jnp.sum(jnp.sin(y) * jnp.asarray(WEIGHTS, y.dtype))

    return loss


def directions(args):
    return tuple(jnp.cos(3 * a.astype(args[1].dtype)).astype(a.dtype) for a in args)


EVERY = (0, 1, 2)


def grad(f, args):
    return jax.grad(loss_of(f), EVERY)(*args)


def jvp(f, args):
    return jax.jvp(f, args, directions(args))[1]


def jacfwd(f, args):
    with jax.numpy_dtype_promotion("standard"):  # it stacks tangents of all types
        return jax.jacfwd(f, EVERY)(*args)


def jacrev(f, args):
    return jax.jacrev(f, EVERY)(*args)


def linearize(f, args):
    return jax.linearize(f, *args)[1](*directions(args))


def linear_transpose(f, args):
    _, linear = jax.linearize(f, *args)
    ct = jnp.asarray(WEIGHTS, args[0].dtype)
    return jax.linear_transpose(linear, *args)(ct)


def hessian(f, args):
    with jax.numpy_dtype_promotion("standard"):
        return jax.hessian(loss_of(f), (0, 1))(*args)


def forward_over_reverse(f, args):
    return jax.jvp(jax.grad(loss_of(f), EVERY), args, directions(args))[1]


def reverse_over_forward(f, args):
    def slope(*args):
        return jax.jvp(loss_of(f), args, directions(args))[1]

    return jax.grad(slope, EVERY)(*args)


def inner(trees, others, dtype):
    pairs = zip(trees, others, strict=True)
    return sum(jnp.sum(a.astype(dtype) * b.astype(dtype)) for a, b in pairs)


def along(function, dtype):
    """The gradient of `function` in a fixed direction, as a new scalar function."""

    def slope(*args):
        fixed = jax.lax.stop_gradient(directions(args))
        return inner(jax.grad(function, EVERY)(*args), fixed, dtype)

    return slope


def reverse_over_reverse(f, args):
    return jax.grad(along(loss_of(f), args[1].dtype), EVERY)(*args)


def third_order(f, args):
    slope = along(loss_of(f), args[1].dtype)
    return jax.jvp(jax.grad(slope, EVERY), args, directions(args))[1]


def third_order_reverse(f, args):
    dtype = args[1].dtype
    return jax.grad(along(along(loss_of(f), dtype), dtype), EVERY)(*args)


def vmap_of_grad(f, args):
    x, scale, bias = args
    xs = jnp.stack([x, x[::-1], -x])
    return jax.vmap(jax.grad(loss_of(f), EVERY), (0, None, None))(xs, scale, bias)


def vmap_of_jvp(f, args):
    def tangent(x):
        return jax.jvp(f, (x, *args[1:]), directions(args))[1]

    return jax.vmap(tangent)(jnp.stack([args[0], -args[0]]))


def jit_inside(f, args):
    return jax.grad(loss_of(jax.jit(f)), EVERY)(*args)


def checkpoint(f, args):
    return jax.grad(loss_of(jax.checkpoint(f)), EVERY)(*args)


def scan(f, args):
    def loss(x, scale, bias):
        def step(x, _):
            return f(x, scale, bias), None

        return loss_of(lambda x, *_: jax.lax.scan(step, x, None, 2)[0])(x, scale, bias)

    return jax.grad(loss, EVERY)(*args)


# The order of the derivative: each order divides by a standard deviation once more,
# and differentiates what was rounded once more.
TRANSFORMATIONS = {
    grad: 1, jvp: 1, jacfwd: 1, jacrev: 1, linearize: 1, linear_transpose: 1,
    jit_inside: 1, checkpoint: 1, scan: 2, vmap_of_grad: 1, vmap_of_jvp: 1, hessian: 2,
    forward_over_reverse: 2, reverse_over_forward: 2, reverse_over_reverse: 2,
    third_order: 3, third_order_reverse: 3,
}  # fmt: skip
OUTER = ("float32", "bfloat16", "float64")


@functools.cache
def wanted(transformation, *, masked, sync):
    with jax.enable_x64(True):
        args = tuple(jnp.asarray(a, jnp.float64) for a in arguments())

        def function(x, scale, bias):
            return plain(x, scale, bias, masked=masked, sync=sync)

        result = jax.jit(lambda *args: transformation(function, args))(*args)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]


def table():
    """All rows; those that add least are left to the slow suite."""
    for transformation, implementation, dtype, masked, sync in itertools.product(
        TRANSFORMATIONS, IMPLEMENTATIONS, OUTER, (False, True), (False, True)
    ):
        first = TRANSFORMATIONS[transformation] == 1
        hardest = masked and sync
        if implementation == "xla":
            quick = hardest or (dtype == "float32" and (first or masked == sync))
        else:  # the rules are the same, the loops are not
            quick = hardest and (dtype == "float32" or (first and dtype == "bfloat16"))
        words = (
            transformation.__name__,
            implementation,
            dtype,
            "masked" if masked else "all",
            "sync" if sync else "local",
        )
        yield pytest.param(
            transformation, implementation, dtype, masked, sync,
            id="-".join(words), marks=[] if quick else [pytest.mark.slow],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("transformation", "implementation", "dtype", "masked", "sync"), table()
)
def test_derivative_matches_float64(
    transformation, implementation, dtype, masked, sync
):
    want = wanted(transformation, masked=masked, sync=sync)
    with jax.enable_x64(dtype == "float64"):
        x, scale, bias = arguments()
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        args = (
            jnp.asarray(x, dtype),
            jnp.asarray(scale, wide),
            jnp.asarray(bias, wide),
        )
        function = layer(implementation, masked=masked, sync=sync)
        result = jax.jit(lambda *args: transformation(function, args))(*args)
        got = jax.tree.leaves(result)
    order = TRANSFORMATIONS[transformation]
    # Every full array of an order is rounded to the type of x a few times.
    step = 8 * 4**order * reference.unit_roundoff(dtype)
    assert len(got) == len(want)
    for value, expected in zip(got, want, strict=True):
        size = max(np.abs(e).max() for e in want) if dtype == "bfloat16" else 1.0
        size = max(size, np.abs(expected).max())
        error = np.abs(reference.wide(value) - expected).max()
        assert error <= step * size, (error / size, step)


@pytest.mark.parametrize("masked", [False, True])
def test_the_float64_reference_in_jnp_is_that_in_numpy(masked):
    with jax.enable_x64(True):
        x, scale, bias = arguments()

        def loss(x, scale, bias):
            y = plain(x, scale, bias, masked=masked, sync=True)
            return jnp.sum(y * WEIGHTS), y

        got, y = jax.grad(loss, EVERY, has_aux=True)(
            *map(jnp.asarray, (x, scale, bias))
        )
    options = {"where": VALID if masked else None, "epsilon": 1e-2}
    np.testing.assert_allclose(
        y, reference.batch_norm(x, scale, bias, **options), atol=1e-12
    )
    want = reference.gradients(x, WEIGHTS, scale, **options)
    for value, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-12)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
@pytest.mark.parametrize("groups", [None, [[0, 2], [1]]], ids=["all", "groups"])
def test_a_rule_that_runs_outside_of_vmap_still_shares_statistics(wrap, groups):
    """The mean is far from the state, so a second all-reduce is needed there too."""
    x, ct = np.random.default_rng(0).normal(size=(2, 3, 8, 2)).astype(np.float32)
    x += np.float32(1000)

    def member(x):
        state = jaxbn.init_state(CHANNELS)
        return jaxbn.batch_norm(x, state, axis_name="i", axis_groups=groups)[0]

    layer = wrap(jax.vmap(member, axis_name="i"))
    got = jax.grad(lambda x: jnp.sum(layer(x) * ct))(jnp.asarray(x))
    for group in groups or [[0, 1, 2]]:
        flat, weights = (a[np.array(group)].reshape(-1, 2) for a in (x, ct))
        want = reference.gradients(flat, weights, np.ones(2))[0]
        part = np.asarray(got)[np.array(group)].reshape(-1, 2)
        np.testing.assert_allclose(part, want, atol=1e-4)


ACTIVATED = [grad, jvp, forward_over_reverse, reverse_over_reverse, third_order]


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("transformation", ACTIVATED, ids=lambda t: t.__name__)
def test_derivative_through_activation_and_residual_matches_float64(
    transformation, implementation, activation
):
    """The residual is a function of `x`, so its tangent and cotangent are seen too."""
    act = {None: lambda z: z, "relu": jax.nn.relu, "silu": jax.nn.silu}[activation]

    def fused(x, scale, bias):
        return jaxbn.batch_norm(
            x, jaxbn.init_state(CHANNELS), scale, bias, epsilon=1e-2,
            activation=activation, residual=jnp.sin(x), implementation=implementation,
        )[0]  # fmt: skip

    def written_out(x, scale, bias):
        y = plain(x, scale, bias, masked=False, sync=True)
        return act(y + jnp.sin(x))

    with jax.enable_x64(True):
        args = tuple(map(jnp.asarray, arguments()))
        got = jax.jit(lambda *args: transformation(fused, args))(*args)
        want = jax.jit(lambda *args: transformation(written_out, args))(*args)
        for value, expected in zip(
            jax.tree.leaves(got), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(value, expected, atol=1e-9)
