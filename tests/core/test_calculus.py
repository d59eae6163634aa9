"""The four primitives have the derivatives of what they compute.

The kernels of `xla` are plain lax, so JAX differentiates them itself: that is what
every rule is compared with, in float64.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.backends import xla
from jaxbn.backends.contract import Gate
from jaxbn.core import calculus

PARAMS = {"axes": (1,)}
FULL, THIN = (6, 3), (3,)
SHAPES = {
    "a": FULL, "x": FULL, "dy": FULL, "residual": FULL,
    "center": THIN, "slope": THIN, "offset": THIN, "multiplier": THIN,
    "gate_slope": THIN, "gate_offset": THIN,
}  # fmt: skip
LIMIT = 1e-11
CASES = {
    "moments": (calculus.moments, xla.KERNELS.moments, {}, ["x"]),
    "sums": (calculus.sums, xla.KERNELS.sums, {}, ["a", "x", "center", "multiplier"]),
    "expand": (
        calculus.expand,
        xla.KERNELS.expand,
        {},
        ["a", "multiplier", "slope", "offset", "x", "center"],
    ),
    "activated": (
        calculus.expand,
        xla.KERNELS.expand,
        {"activation": jax.nn.silu},
        ["a", "slope", "offset", "x", "center"],
    ),
    "gate": (
        calculus.gate,
        xla.KERNELS.gate,
        {"activation": jax.nn.silu},
        ["dy", "x", "center", "slope", "offset", "residual"],
    ),
}
for part in ("other", "affine"):
    for kind in ("sums", "expand"):
        *call, _, moving = CASES[kind]
        options = {"gate": Gate(part, jax.nn.silu)}
        CASES[f"{kind}, {part} gated"] = (
            *call, options, [*moving, "gate_slope", "gate_offset"]
        )  # fmt: skip
# The transpose of a gated `expand` that has no first operand, or no cotangent of it.
CASES["sums alone, affine gated"] = (
    *CASES["sums"][:2],
    {"gate": Gate("affine", jax.nn.silu)},
    ["a", "x", "center", "gate_slope", "gate_offset"],
)
WITHOUT_MULTIPLIER = ("activated", "sums alone, affine gated")
MASKED = [name for name in CASES if name.startswith(("moments", "sums", "expand"))]


def values_of(name, operands, *, masked):
    generator = np.random.default_rng(0)
    where = generator.random(FULL) < 0.7
    found = {n: jnp.asarray(generator.normal(size=s)) for n, s in SHAPES.items()}
    found["where"] = jnp.asarray(where) if masked else None
    if name in WITHOUT_MULTIPLIER:
        found["multiplier"] = None
    if "gate" not in CASES[name][2]:
        found |= {"gate_slope": None, "gate_offset": None}
    return [found[operand] for operand in operands]


def both(name, moving, *, masked=False):
    """The primitive and the plain kernel as functions of the operand `moving` only."""
    primitive, plain, options, _ = CASES[name]
    values = values_of(name, primitive.operands, masked=masked)
    place = primitive.operands.index(moving)

    def at(call):
        def function(value):
            changed = [*values[:place], value, *values[place + 1 :]]
            result = call(*changed)
            result = list(result) if isinstance(result, tuple | list) else [result]
            # Only the sum of a mean's two parts has a meaning.
            return [result[0] + result[1], *result[2:]] if name == "moments" else result

        return function

    rule = functools.partial(primitive, **PARAMS, **options, implementation="xla")
    return at(rule), at(functools.partial(plain, **PARAMS, **options)), values[place]


def derivatives(function, value):
    """The result and its derivatives along, back, and back along another direction."""

    def loss(v):
        return sum(jnp.sum(jnp.sin(o)) for o in function(v))

    result, tangent = jax.jvp(function, (value,), (jnp.cos(value),))
    _, vjp = jax.vjp(function, value)
    return {
        "forward": (result, tangent),
        "reverse": vjp([jnp.sin(1 + o) for o in result]),
        "second": jax.jvp(jax.grad(loss), (value,), (jnp.cos(value),))[1],
    }


@functools.cache
def compared(name, *, masked):
    """All derivatives by the rule and of the plain kernel, for every moving operand."""

    @jax.jit
    def all_of_them():
        found = {}
        for moving in CASES[name][-1]:
            rule, plain, value = both(name, moving, masked=masked)
            found[moving] = [derivatives(f, value) for f in (rule, plain)]
        return found

    with jax.enable_x64(True):
        return jax.device_get(all_of_them())


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        pytest.param(name, masked, marks=[pytest.mark.slow] if slow else [])
        for name in CASES
        for masked in ([False, True] if name in MASKED else [False])
        for slow in [name in MASKED and "gated" in name and not masked]
    ],
)
@pytest.mark.parametrize(
    ("order", "limit"), [("forward", LIMIT), ("reverse", LIMIT), ("second", 10 * LIMIT)]
)
def test_a_derivative_is_that_of_the_plain_kernel(order, limit, name, masked):
    for moving, (rule, plain) in compared(name, masked=masked).items():
        chex.assert_trees_all_close(
            rule[order], plain[order], atol=limit, custom_message=moving
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("part", [None, "other", "affine"])
def test_sums_and_expand_are_transposes(masked, part):
    # <sums(a), (s, u, t)> = <a, expand(s, multiplier, t, u)> for every a, s, u and t
    with jax.enable_x64(True):
        names = (*calculus.sums.operands, "dy", "slope", "offset")
        values = values_of("sums, other gated", names, masked=masked)
        a, x, center, multiplier, where, *line, s, slope, offset = values
        gate = None if part is None else Gate(part, jax.nn.silu)
        params = {**PARAMS, "implementation": "xla", "gate": gate}
        scaled, total, moment = calculus.sums(
            a, x, center, multiplier, where, *line, **params
        )
        (back,) = calculus.expand(
            s, multiplier, slope, offset, x, center, where, *line, **params
        )
        left = jnp.vdot(scaled, s) + jnp.vdot(total, offset) + jnp.vdot(moment, slope)
        np.testing.assert_allclose(left, jnp.vdot(a, back), rtol=LIMIT)


@pytest.mark.parametrize(
    "name", ["sums", "sums, other gated", "sums, affine gated", "gate"]
)
def test_a_linear_kernel_is_linear_in_its_first_operand(name):
    with jax.enable_x64(True):
        rule, _, value = both(name, CASES[name][-1][0])
        got = rule(2 * value + jnp.cos(value))
        want = [
            2 * p + q for p, q in zip(rule(value), rule(jnp.cos(value)), strict=True)
        ]
        chex.assert_trees_all_close(got, want, atol=LIMIT)
