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


def sharing(*, masked, sync):
    """Which values count, and whose statistics a member uses, both as numbers."""
    valid = VALID if masked else np.ones_like(VALID)
    together = np.ones((MEMBERS, MEMBERS)) if sync else np.eye(MEMBERS)
    return valid.astype(np.float64), together


def plain(x, scale, bias, valid, together):
    """The paper in jnp: mask and synchronisation are data, so one program has all."""

    def total(values):
        sums = jnp.sum(valid * values, 1)
        return jnp.sum(together[..., None] * sums[None], 1)[:, None]

    count = total(jnp.ones_like(x))
    mean = total(x) / count
    var = total((x - mean) ** 2) / count
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
ALL = tuple(TRANSFORMATIONS)
# What the quick suite sees; keys are implementation, type, mask and synchronisation.
# Every transformation is there, and masked and synchronised, the hardest, each order in
# each mode. The rest crosses the same rules with more types, masks and loops.
QUICK = {
    ("xla", "float32", True, True): (
        grad, jvp, jit_inside, checkpoint, scan, vmap_of_grad, reverse_over_reverse
    ),
    ("xla", "bfloat16", True, True): (jacfwd, linear_transpose, forward_over_reverse),
    ("xla", "float64", True, True): (jacrev, reverse_over_forward, third_order),
    ("xla", "float32", False, False): (
        jvp, linearize, vmap_of_jvp, hessian, third_order_reverse
    ),
    ("xla", "float32", True, False): (vmap_of_grad,),
    ("xla", "float32", False, True): (grad, jvp),
    ("native", "float32", True, True): (grad, jvp, vmap_of_grad),
    ("native", "bfloat16", True, True): (grad, jvp),
}  # fmt: skip
assert set(ALL) == set(itertools.chain(*QUICK.values()))


def compiled_once(function, args, transformations):
    """Every transformation of `function`, from one program, as NumPy arrays."""

    def all_of_them(*args):
        return {t.__name__: t(function, args) for t in transformations}

    return as_arrays(jax.jit(all_of_them)(*args))


def as_arrays(results):
    return {k: list(map(np.asarray, jax.tree.leaves(v))) for k, v in results.items()}


@functools.cache
def wanted_program():
    @jax.jit
    def all_of_them(args, valid, together):
        def function(x, scale, bias):
            return plain(x, scale, bias, valid, together)

        return {t.__name__: t(function, args) for t in ALL}

    return all_of_them


@functools.cache
def wanted(*, masked, sync):
    """All transformations of the paper in float64."""
    with jax.enable_x64(True):
        args = tuple(jnp.asarray(a, jnp.float64) for a in arguments())
        numbers = map(jnp.asarray, sharing(masked=masked, sync=sync))
        return as_arrays(wanted_program()(args, *numbers))


def programs():
    """The table, as programs of one quick and of one slow part of its rows."""
    for implementation, dtype, masked, sync in itertools.product(
        IMPLEMENTATIONS, OUTER, (False, True), (False, True)
    ):
        key = implementation, dtype, masked, sync
        quick = QUICK.get(key, ())
        if dtype != "float32" and masked != sync:
            continue  # the type changes no rule
        slow = tuple(t for t in ALL if t not in quick)
        words = implementation, dtype, MASKED[masked], SHARED[sync]
        if quick:
            yield pytest.param(quick, *key, id="-".join(words))
        if slow:
            mark = pytest.mark.slow
            yield pytest.param(slow, *key, id="-".join((*words, "rest")), marks=mark)


MASKED, SHARED = {False: "all", True: "masked"}, {False: "local", True: "sync"}


@pytest.mark.parametrize(
    ("transformations", "implementation", "dtype", "masked", "sync"), programs()
)
def test_derivatives_match_float64(
    transformations, implementation, dtype, masked, sync
):
    want = wanted(masked=masked, sync=sync)
    with jax.enable_x64(dtype == "float64"):
        x, scale, bias = arguments()
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        args = (
            jnp.asarray(x, dtype),
            jnp.asarray(scale, wide),
            jnp.asarray(bias, wide),
        )
        function = layer(implementation, masked=masked, sync=sync)
        got = compiled_once(function, args, transformations)
    errors = {
        t.__name__: relative_error(got[t.__name__], want[t.__name__], dtype)
        for t in transformations
    }
    # Every full array of an order is rounded to the type of x a few times.
    step = 8 * reference.unit_roundoff(dtype)
    allowed = {t.__name__: step * 4**order for t, order in TRANSFORMATIONS.items()}
    wrong = {name: e for name, e in errors.items() if not e <= allowed[name]}
    assert not wrong, allowed


def relative_error(got, want, dtype):
    """The largest error, relative to the size of what is wanted."""
    assert len(got) == len(want)
    largest = 0.0
    for value, expected in zip(got, want, strict=True):
        size = max(np.abs(e).max() for e in want) if dtype == "bfloat16" else 1.0
        size = max(size, np.abs(expected).max())
        error = np.abs(reference.wide(value) - expected).max()
        largest = np.fmax(largest, error / size) if error == error else np.inf
    return largest


@functools.cache
def plain_gradients():
    def loss(args, valid, together):
        y = plain(*args, valid, together)
        return jnp.sum(y * WEIGHTS), y

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_float64_reference_in_jnp_is_that_in_numpy(masked, sync):
    x, scale, bias = arguments()
    with jax.enable_x64(True):
        got, y = plain_gradients()((x, scale, bias), *sharing(masked=masked, sync=sync))
    options = {"where": VALID if masked else None, "epsilon": 1e-2}
    groups = [(0, 1)] if sync else [(0,), (1,)]
    parts = [part_of(group, x, scale, bias, **options) for group in groups]
    ys, dxs, dscales, dbiases = zip(*parts, strict=True)
    np.testing.assert_allclose(y, np.concatenate(ys), atol=1e-12)
    want = np.concatenate(dxs), sum(dscales), sum(dbiases)
    for value, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-12)


def part_of(group, x, scale, bias, *, where, epsilon):
    """Output and gradients of the members that share statistics."""
    x, ct = x[list(group)], WEIGHTS[list(group)]
    where = None if where is None else where[list(group)]
    options = {"where": where, "epsilon": epsilon}
    y = reference.batch_norm(x, scale, bias, **options)
    return y, *reference.gradients(x, ct, scale, **options)


@functools.cache
def gradients_outside_of_vmap():
    """Input, weights of the loss, and gradients for every wrapper and grouping."""
    x, ct = np.random.default_rng(0).normal(size=(2, 3, 8, 2)).astype(np.float32)
    x += np.float32(1000)

    def gradient(x, wrap, groups):
        def member(x):
            state = jaxbn.init_state(CHANNELS)
            return jaxbn.batch_norm(x, state, axis_name="i", axis_groups=groups)[0]

        layer = wrap(jax.vmap(member, axis_name="i"))
        return jax.grad(lambda x: jnp.sum(layer(x) * ct))(x)

    @jax.jit
    def all_of_them(x):
        return [[gradient(x, w, g) for g in GROUPS.values()] for w in WRAPPERS.values()]

    found = all_of_them(x)
    by_name = {
        (wrap, groups): np.asarray(value)
        for wrap, row in zip(WRAPPERS, found, strict=True)
        for groups, value in zip(GROUPS, row, strict=True)
    }
    return x, ct, by_name


WRAPPERS = {"jit": jax.jit, "checkpoint": jax.checkpoint}
GROUPS = {"all": None, "groups": [[0, 2], [1]]}


def test_a_rule_that_runs_outside_of_vmap_still_shares_statistics():
    """The mean is far from the state, so a second all-reduce is needed there too."""
    x, ct, found = gradients_outside_of_vmap()
    for (wrap, groups), got in found.items():
        for group in GROUPS[groups] or [[0, 1, 2]]:
            flat, weights = (a[np.array(group)].reshape(-1, 2) for a in (x, ct))
            want = reference.gradients(flat, weights, np.ones(2))[0]
            part = got[np.array(group)].reshape(-1, 2)
            np.testing.assert_allclose(
                part, want, atol=1e-4, err_msg=f"{wrap}, {groups}"
            )


ACTIVATED = (grad, jvp, forward_over_reverse, reverse_over_reverse, third_order)
ACTIVATIONS = {"None": lambda z: z, "relu": jax.nn.relu, "silu": jax.nn.silu}
QUICK_ACTIVATED = {
    "xla": {"None": (jvp,), "relu": (grad, third_order), "silu": ACTIVATED},
    "native": {"relu": (grad, jvp), "silu": (grad, reverse_over_reverse)},
}


def activated(*, slow):
    """For each activation, what is differentiated how with which loops."""
    for activation in ACTIVATIONS:
        rows = {}
        for implementation in IMPLEMENTATIONS:
            quick = QUICK_ACTIVATED.get(implementation, {}).get(activation, ())
            rest = tuple(t for t in ACTIVATED if t not in quick)
            rows[implementation] = rest if slow else quick
        yield activation, {k: v for k, v in rows.items() if v}


@pytest.mark.parametrize(
    ("activation", "rows"),
    [
        *(pytest.param(*row, id=row[0]) for row in activated(slow=False)),
        *(
            pytest.param(*row, id=f"{row[0]}-rest", marks=pytest.mark.slow)
            for row in activated(slow=True)
            if row[1]
        ),
    ],
)
def test_derivatives_through_activation_and_residual_match_float64(activation, rows):
    """The residual is a function of `x`, so its tangent and cotangent are seen too."""

    def fused(implementation):
        return lambda x, scale, bias: jaxbn.batch_norm(
            x, jaxbn.init_state(CHANNELS), scale, bias, epsilon=1e-2,
            activation=None if activation == "None" else activation,
            residual=jnp.sin(x), implementation=implementation,
        )[0]  # fmt: skip

    def written_out(x, scale, bias):
        y = plain(x, scale, bias, *sharing(masked=False, sync=True))
        return ACTIVATIONS[activation](y + jnp.sin(x))

    @jax.jit
    def all_of_them(*args):
        used = [t for t in ACTIVATED if any(t in row for row in rows.values())]
        want = {t.__name__: t(written_out, args) for t in used}
        found = {
            implementation: {t.__name__: t(fused(implementation), args) for t in row}
            for implementation, row in rows.items()
        }
        return want, found

    with jax.enable_x64(True):
        want, found = all_of_them(*map(jnp.asarray, arguments()))
    for implementation, row in found.items():
        for name, got in row.items():
            leaves = jax.tree.leaves(got), jax.tree.leaves(want[name])
            for value, expected in zip(*leaves, strict=True):
                np.testing.assert_allclose(
                    value, expected, atol=1e-9, err_msg=f"{implementation}, {name}"
                )
