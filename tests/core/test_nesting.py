"""A layer in every nesting of two transformations, with nothing traced before."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn.variants import domains, ghost, renorm, timestep

MEMBERS, ROWS, CHANNELS = 4, 2, 3
AXIS = {"axis_name": "members"}


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


@jax.custom_vjp
def same(x):
    return x


same.defvjp(lambda x: (x, None), lambda _, ct: (ct,))


def in_loop(f):
    def call(*arguments):
        def body(carry):
            return carry[0] + 1, f(*arguments)

        start = jax.tree.map(jnp.zeros_like, jax.eval_shape(f, *arguments))
        return lax.while_loop(lambda carry: carry[0] < 1, body, (0, start))[1]

    return call


def chosen(f, choice):
    """`f` as one of two branches, in a program that does not know which."""

    def other(*arguments):
        shapes = jax.eval_shape(f, *arguments)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    return lambda *a: choice(f, other, sum(jnp.sum(v) for v in a) < 1e9, *a)


NESTINGS = {
    "nothing": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "scan": lambda f: (
        lambda *a: first(lax.scan(lambda c, _: (c, f(*a)), 0, None, length=1)[1])
    ),
    "map": lambda f: lambda *a: first(lax.map(lambda _: f(*a), jnp.zeros(1))),
    "cond": lambda f: chosen(f, lambda f, g, yes, *a: lax.cond(yes, f, g, *a)),
    "switch": lambda f: chosen(
        f, lambda f, g, yes, *a: lax.switch(yes.astype(int), [g, f], *a)
    ),
    # Around the result: JAX traces a rule with a `psum` inside where no axis is bound.
    "custom_vjp": lambda f: lambda *a: same(f(*a)),
    "while": in_loop,
}
BACKWARD = [name for name in NESTINGS if name != "while"]
FORWARD = [name for name in NESTINGS if name != "custom_vjp"]


def linen(x, scale):
    module = jaxbn.linen.BatchNorm(use_running_average=False, **AXIS)
    variables = {
        "params": {"scale": scale, "bias": jnp.zeros(CHANNELS)},
        "batch_stats": {"mean": jnp.zeros(CHANNELS), "var": jnp.ones(CHANNELS)},
    }
    return module.apply(variables, x, mutable=["batch_stats"])[0]


def of_nnx(x, scale):
    module = jaxbn.nnx.BatchNorm(CHANNELS, **AXIS, rngs=nnx.Rngs(0))
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    parameters["scale"].set_value(scale)
    return nnx.merge(graph, parameters, rest)(x)


def of_complex(x, scale):
    state = jaxbn.init_state(CHANNELS, dtype=jnp.complex64)
    with jax.numpy_dtype_promotion("standard"):  # real variance, complex mean
        return abs(jaxbn.batch_norm(lax.complex(x, 2 * x), state, scale, **AXIS)[0])


STATE = jaxbn.init_state(CHANNELS)
MASK = np.array([[True], [False]])
LAYERS = {
    "batch_norm": lambda x, s: jaxbn.batch_norm(x, STATE, s, **AXIS)[0],
    "residual": lambda x, s: jaxbn.batch_norm(
        x, STATE, s, activation="silu", residual=x, **AXIS
    )[0],
    "relu": lambda x, s: jaxbn.batch_norm(x, STATE, s, activation="relu", **AXIS)[0],
    "mask": lambda x, s: jaxbn.batch_norm(x, STATE, s, where=MASK, **AXIS)[0],
    "output": lambda x, s: jaxbn.batch_norm(
        x, STATE, s, save="output", activation="leaky_relu", **AXIS
    )[0],
    "recompute": lambda x, s: jaxbn.batch_norm(
        x, STATE, s, save="recompute", **AXIS
    )[0],
    "complex": of_complex,
    "moments": lambda x, s: jaxbn.moments(x * s[None], **AXIS).m2[None] + x,
    "linen": linen,
    "nnx": of_nnx,
    "ghost": lambda x, s: ghost.ghost_batch_norm(
        x, STATE, s, ghost_batch_size=4, **AXIS
    )[0],
    "renorm": lambda x, s: renorm.batch_renorm(
        x, renorm.init_renorm_state(CHANNELS), s, r_max=3.0, d_max=5.0, **AXIS
    )[0],
    "timestep": lambda x, s: timestep.timestep_batch_norm(
        x, timestep.init_timestep_state(2, CHANNELS), s, t=1, **AXIS
    )[0],
    "domains": lambda x, s: domains.domain_batch_norm(
        x, domains.init_domain_state(2, CHANNELS), s, domain=1, **AXIS
    )[0],
}  # fmt: skip


def loss(layer, inner, scale):
    x = jax.random.normal(jax.random.key(0), (MEMBERS, ROWS, CHANNELS)) + 3
    y = jax.vmap(lambda x: NESTINGS[inner](layer)(x, scale), axis_name="members")(x)
    return (jnp.sin(y) * x).sum()


SCALE, DIRECTION = np.array([1.0, -2.0, 0.5], "f"), np.array([1.0, 0.3, -0.7], "f")


def derivatives(name, outer, inner):
    """Along a direction, for the inner transformations, in the modes that exist."""
    layer = LAYERS[name]
    backward = [n for n in inner if n in BACKWARD and outer in BACKWARD]
    forward = [n for n in inner if n in FORWARD and outer in FORWARD]

    def losses(names, scales):
        nested = NESTINGS[outer]
        each = [nested(functools.partial(loss, layer, inner)) for inner in names]
        return jnp.stack([f(s) for f, s in zip(each, scales, strict=True)])

    def both():
        found = {}
        if backward:
            scales = jnp.tile(SCALE, (len(backward), 1))
            rows = jax.grad(lambda s: losses(backward, s).sum())(scales)
            found |= {
                ("grad", n): r @ DIRECTION for n, r in zip(backward, rows, strict=True)
            }
        if forward:
            scales, along = (jnp.tile(v, (len(forward), 1)) for v in (SCALE, DIRECTION))
            change = jax.jvp(functools.partial(losses, forward), (scales,), (along,))[1]
            found |= {("jvp", n): c for n, c in zip(forward, change, strict=True)}
        return found

    jax.clear_caches()
    return jax.jit(both)()


@functools.cache
def plain(name):
    function = jax.jit(functools.partial(loss, LAYERS[name], "nothing"))
    return jax.jvp(function, (SCALE,), (DIRECTION,))[1]


QUICK = [("batch_norm", "remat"), ("batch_norm", "cond")]
PLAIN = ("nothing", "jit", "remat", "scan", "cond")
# All pass in all; the slow suite has these: one layer of each interface in all pairs,
# each other one in one of the two that replay a program and trace both branches.
INTERFACES = ("batch_norm", "linen", "nnx")
ALL = {(n, outer): tuple(NESTINGS) for n in INTERFACES for outer in NESTINGS} | {
    (name, outer): PLAIN
    for name, outer in zip(
        sorted(LAYERS.keys() - set(INTERFACES)), itertools.cycle(("remat", "cond"))
    )
}


def compare(name, outer, inner):
    want = plain(name)
    for nesting, got in derivatives(name, outer, inner).items():
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=nesting)


@pytest.mark.parametrize(("name", "outer"), QUICK)
def test_nestings_have_the_same_derivatives(name, outer):
    compare(name, outer, PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "outer"), ALL)
def test_every_nesting_has_the_same_derivatives(name, outer):
    compare(name, outer, ALL[name, outer])
