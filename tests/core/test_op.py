"""A kernel as a primitive: absent operands, vmap, compilation and varying axes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxbn
from jaxbn.backends.contract import Gate
from jaxbn.core import by_input, calculus, op

PARAMS = {"axes": (1,), "implementation": "xla"}
SIZE, ROWS, CHANNELS = 4, 5, 3


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def operands():
    """A stack of every operand that any kernel takes."""
    full = {name: draw(SIZE, ROWS, CHANNELS, seed=i) for i, name in enumerate("axdr")}
    names = ("center", "slope", "offset", "multiplier")
    names += ("gate_slope", "gate_offset")
    thin = {name: draw(SIZE, CHANNELS, seed=9 + i) for i, name in enumerate(names)}
    where = (jnp.arange(ROWS)[None] != jnp.arange(SIZE)[:, None])[..., None]
    full["dy"], full["residual"] = full.pop("d"), full.pop("r")
    return full | thin | {"where": where}


KERNELS = {
    "moments": (calculus.moments, {}),
    "nothing": (by_input.nothing, {"gate": Gate("other", jax.nn.relu)}),
    "sums": (calculus.sums, {"gate": Gate("other", jax.nn.silu)}),
    "expand": (calculus.expand, {"gate": Gate("affine", jax.nn.silu)}),
    "gate": (calculus.gate, {"activation": jax.nn.silu}),
}


def comparable(name, results):
    """Of the mean in two parts only the sum has a meaning."""
    if name != "moments":
        return results
    return [results[0] + results[1], *results[2:]]


ALL = [
    (name, operand)
    for name, (each, _) in KERNELS.items()
    for operand in (None, *each.operands)
]


@pytest.mark.parametrize(("name", "alone"), ALL)
def test_vmap_of_a_kernel_is_a_loop(name, alone):
    """With all operands batched, then with only one of them."""
    primitive, options = KERNELS[name]
    stacks = operands()
    batched = [alone is None or alone == operand for operand in primitive.operands]
    values = [
        stacks[operand] if is_batched else stacks[operand][0]
        for operand, is_batched in zip(primitive.operands, batched, strict=True)
    ]
    call = functools.partial(primitive, **PARAMS, **options)
    got = jax.vmap(call, [0 if b else None for b in batched])(*values)
    each = [
        call(*(v[i] if b else v for v, b in zip(values, batched, strict=True)))
        for i in range(SIZE)
    ]
    want = [jnp.stack(results) for results in zip(*each, strict=True)]
    got, want = comparable(name, got), comparable(name, want)
    chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_vmap_of_a_kernel_may_be_over_any_axis(axis):
    x = draw(SIZE, ROWS, CHANNELS)
    call = functools.partial(calculus.sums, **PARAMS)
    ones = jnp.ones(CHANNELS)

    def total(a):
        return call(a, a, ones, None, None)

    got = jax.vmap(total, axis)(jnp.moveaxis(x, 0, axis))
    want = [jnp.stack(r) for r in zip(*map(total, x), strict=True)]
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_vmap_inside_vmap_of_a_kernel_is_a_double_loop():
    x = draw(2, SIZE, ROWS, CHANNELS)
    ones = jnp.ones(CHANNELS)

    def total(a):
        return calculus.sums(a, a, ones, None, None, **PARAMS)[1]

    got = jax.vmap(jax.vmap(total))(x)
    want = jnp.stack([jnp.stack([total(a) for a in row]) for row in x])
    chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_a_compiled_kernel_gives_what_an_eager_one_gives(name):
    primitive, options = KERNELS[name]
    stacks = operands()
    values = [stacks[operand][0] for operand in primitive.operands]
    call = functools.partial(primitive, **PARAMS, **options)
    chex.assert_trees_all_close(jax.jit(call)(*values), call(*values), atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_types_are_known_without_running(name):
    primitive, options = KERNELS[name]
    stacks = operands()
    values = [stacks[operand][0] for operand in primitive.operands]
    call = functools.partial(primitive, **PARAMS, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(call, *values), call(*values)
    )


def test_an_absent_multiplier_leaves_out_the_first_result():
    stacks = {name: value[0] for name, value in operands().items()}
    a, x, center = (stacks[name] for name in ("a", "x", "center"))
    with_one = calculus.sums(a, x, center, jnp.ones(CHANNELS), None, **PARAMS)
    without = calculus.sums(a, x, center, None, None, **PARAMS)
    assert len(with_one) == 3
    chex.assert_trees_all_close(with_one[1:], without)
    chex.assert_trees_all_close(with_one[0], a)


def test_the_program_names_the_kernels():
    text = str(
        jax.make_jaxpr(
            lambda: calculus.sums(draw(5, 3), draw(5, 3), draw(3), None, None, **PARAMS)
        )()
    )
    assert "jaxbn_sums" in text and "implementation=xla" in text


def test_operands_are_untouched_outside_a_mesh():
    values = [draw(3), draw(5, 3)]
    for got, want in zip(op.share_types(values), values, strict=True):
        assert got is want


@pytest.mark.parametrize("check", [False, True])
def test_a_replicated_operand_may_meet_a_sharded_one(check):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x, scale = draw(16, 3), draw(3, seed=1)

    def spread(x, scale):
        zero = jnp.zeros_like(scale)
        return calculus.expand(None, None, scale, zero, x, zero, None, **PARAMS)[0]

    mapped = jax.shard_map(
        spread, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), check_vma=check
    )
    chex.assert_trees_all_close(jax.jit(mapped)(x, scale), x * scale[None], rtol=1e-6)
    _, vjp = jax.vjp(jax.jit(mapped), x, scale)
    want = jnp.sum(x, 0)
    np.testing.assert_allclose(vjp(jnp.ones_like(x))[1], want, atol=1e-5)


def test_arrays_of_numpy_may_meet_vmap_inside_jit():
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 6, 3)).astype(np.float32)
    given = (x, random.random((4, 6, 1)) < 0.7, np.ones((4, 3), np.float32))

    def layer(x, where, scale):
        state = jaxbn.BatchNormState(scale, scale, scale)
        options = {"where": where, "residual": x, "axis_name": "i"}
        y, new = jaxbn.batch_norm(x, state, scale, scale, **options)
        return y, new, jaxbn.normalize(x, scale, scale), jaxbn.moments(x, where=where)

    def gradient(*given):
        return jax.grad(lambda x: layer(x, *given[1:])[0].sum())(given[0])

    def mapped(*given):
        return [jax.vmap(f, axis_name="i")(*given) for f in (layer, gradient)]

    closed, passed = jax.jit(lambda: mapped(*given))(), jax.jit(mapped)(*given)
    chex.assert_trees_all_close(closed, passed, atol=1e-5)
