"""Every implementation does what `jaxbn.backends.contract` says, against NumPy.

A new implementation is one more row: the list comes from `jaxbn.implementations`.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxbn
from jaxbn.backends.contract import Gate
from jaxbn.core import calculus

IMPLEMENTATIONS = [n for n, why in jaxbn.implementations().items() if why is None]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
LAYOUTS = {
    "channels last": ((64, 5), (1,)),
    "channels first": ((5, 64), (0,)),
    "images first": ((4, 5, 3, 7), (1,)),
    "images last": ((4, 3, 7, 5), (3,)),
    "two feature axes": ((3, 17, 2, 5), (0, 3)),
    "one row": ((1, 5), (1,)),
    "one channel": ((129, 1), (1,)),
    "no rows": ((0, 5), (1,)),
    "only features": ((5,), (0,)),
}
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# All layouts in the two types that matter most, all types in one layout. Of the two
# types the quick suite takes one for each layout, in turns.
CHEAP = [
    pytest.param(layout, dtype, marks=[] if (i + j) % 2 else [pytest.mark.slow])
    for i, layout in enumerate(LAYOUTS)
    for j, dtype in enumerate(("bfloat16", "float32"))
]
EXTRA = [("images first", dtype) for dtype in ("float16", "float64")]
in_all_layouts = pytest.mark.parametrize(("layout", "dtype"), CHEAP + EXTRA)
in_two_layouts = pytest.mark.parametrize(
    ("layout", "dtype"), [("channels last", "bfloat16"), ("images first", "float32")]
)
of_all_types = pytest.mark.parametrize("dtype", DTYPES)
with_masks = pytest.mark.parametrize("mask", [None, "rows", "full"])
masked_or_not = pytest.mark.parametrize("mask", [None, "full"])


class Problem:
    """Operands of one layout, and their float64 values."""

    def __init__(self, layout, dtype, mask=None, mean=0.0):
        self.shape, self.axes = LAYOUTS[layout]
        self.dtype = jnp.dtype(dtype)
        self.wide = jnp.float64 if dtype == "float64" else jnp.float32
        self.generator = np.random.default_rng(0)
        self.features = tuple(self.shape[i] for i in self.axes)
        self.rows = int(np.prod(self.shape)) // int(np.prod(self.features))
        self.x = self.full(mean)
        self.where = None
        if mask is not None:
            kept = [
                1 if mask == "rows" and i in self.axes else n
                for i, n in enumerate(self.shape)
            ]
            self.where = jnp.asarray(self.generator.random(kept) < 0.7)

    def full(self, mean=0.0):
        return jnp.asarray(self.generator.normal(mean, 1, self.shape), self.dtype)

    def vector(self, mean=0.0):
        return jnp.asarray(self.generator.normal(mean, 1, self.features), self.wide)

    def along(self, vector):
        return reference.along(vector, self.x, self.axes)

    def total(self, values):
        """The sum of the values that count, over the rows."""
        valid = True if self.where is None else np.asarray(self.where)
        return np.where(valid, values, 0).sum(reference.rows(self.x, self.axes))

    def counted(self, values):
        return values if self.where is None else np.where(self.where, values, 0)

    def count(self):
        return jnp.asarray(self.total(np.ones(self.shape)), self.wide)

    def call(self, kernel, *operands, implementation, **params):
        bound = functools.partial(
            kernel, axes=self.axes, implementation=implementation, **params
        )
        return jax.jit(bound)(*operands)

    def assert_sum(self, got, terms):
        """A sum in the statistics type may lose sqrt(n) + 32 roundings of its terms."""
        assert got.dtype == self.wide and got.shape == self.features
        size = np.sqrt(self.total(terms**2) * max(self.rows, 1))
        limit = reference.statistics_error(self.rows, self.dtype) * size
        assert (np.abs(got - self.total(terms)) <= limit).all()

    def assert_full(self, got, want, size):
        """Rounded once to the type of x, and eight times to that of the statistics."""
        assert got.dtype == self.dtype and got.shape == self.shape
        step = reference.unit_roundoff(self.dtype)
        limit = 2 * step * np.abs(want) + 16 * size * reference.statistics_roundoff(
            self.dtype
        )
        tiny = float(jnp.finfo(self.dtype).smallest_subnormal)
        assert (np.abs(reference.wide(got) - want) <= limit + tiny).all()


def problem(layout, dtype, mask=None, mean=0.0):
    return Problem(layout, dtype, mask, mean)


def precision(dtype):
    return jax.enable_x64(dtype == "float64")


@every
@in_all_layouts
@masked_or_not
@pytest.mark.parametrize("distance", [0.0, 100.0])
def test_moments(implementation, dtype, layout, mask, distance):
    """The shift is good, or a hundred standard deviations off."""
    with precision(dtype):
        p = problem(layout, dtype, mask, mean=3.0)
        shift = jnp.full(p.features, 3.0 + distance, p.wide)
        center, delta, m2 = p.call(
            functools.partial(calculus.moments, floor=0.0),
            p.x, shift, p.count(), p.where, implementation=implementation,
        )  # fmt: skip
        count, mean, want = reference.moments(p.x, axis=p.axes, where=p.where)
        spread = np.sqrt(want / np.maximum(count, 1))
        error = reference.statistics_error(p.rows, p.dtype)
        got = np.where(count > 0, reference.wide(center) + reference.wide(delta), 0)
        # A constant channel has no spread: there the sum is rounded at the size of x.
        least = 4 * reference.statistics_roundoff(p.dtype) * np.abs(mean)
        assert center.dtype == delta.dtype == m2.dtype == p.wide
        assert (np.abs(got - mean) <= 4 * error * spread + least).all()
        assert (np.abs(m2 - want) <= error * want + count * least**2).all()
        assert (m2 >= 0).all()


@every
@in_all_layouts
@masked_or_not
@pytest.mark.parametrize("scaled", [False, True])
def test_sums(implementation, dtype, layout, mask, scaled):
    with precision(dtype):
        p = problem(layout, dtype, mask)
        a, center = p.full(), p.vector()
        multiplier = p.vector() if scaled else None
        *first, total, moment = p.call(
            calculus.sums, a, p.x, center, multiplier, p.where,
            implementation=implementation,
        )  # fmt: skip
        wide = reference.wide(a)
        p.assert_sum(total, wide)
        p.assert_sum(moment, wide * (reference.wide(p.x) - p.along(center)))
        assert len(first) == scaled
        if scaled:
            want = wide * p.along(multiplier)
            p.assert_full(first[0], want, np.abs(want))


@every
@in_all_layouts
@masked_or_not
@pytest.mark.parametrize("added", ["nothing", "array", "scaled array"])
def test_expand(implementation, dtype, layout, mask, added):
    with precision(dtype):
        p = problem(layout, dtype, mask)
        a = None if added == "nothing" else p.full()
        multiplier = p.vector() if added == "scaled array" else None
        slope, offset, center = p.vector(), p.vector(), p.vector()
        (got,) = p.call(
            calculus.expand, a, multiplier, slope, offset, p.x, center, p.where,
            implementation=implementation,
        )  # fmt: skip
        distance = reference.wide(p.x) - p.along(center)
        terms = [
            p.counted(distance * p.along(slope)),
            p.counted(p.along(offset) + 0 * distance),
        ]
        if a is not None:
            weight = 1 if multiplier is None else p.along(multiplier)
            terms.append(reference.wide(a) * weight)
        p.assert_full(got, sum(terms), sum(map(np.abs, terms)))


@every
@in_all_layouts
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_expand_with_an_activation(implementation, dtype, layout, added, name):
    with precision(dtype):
        p = problem(layout, dtype)
        a = p.full() if added else None
        slope, offset, center = p.vector(), p.vector(), p.vector()
        (got,) = p.call(
            calculus.expand, a, None, slope, offset, p.x, center, None,
            implementation=implementation, activation=getattr(jax.nn, name),
        )  # fmt: skip
        scaled = (reference.wide(p.x) - p.along(center)) * p.along(slope)
        z = scaled + p.along(offset) + (reference.wide(a) if added else 0)
        size = np.abs(scaled) + np.abs(p.along(offset)) + 4
        p.assert_full(got, reference.ACTIVATIONS[name](z), size)


@every
@in_all_layouts
@pytest.mark.parametrize("added", [False, True])
def test_gate(implementation, dtype, layout, added):
    with precision(dtype):
        p = problem(layout, dtype)
        residual = p.full() if added else None
        dy, slope, offset, center = p.full(), p.vector(), p.vector(), p.vector()
        (got,) = p.call(
            calculus.gate, dy, p.x, center, slope, offset, residual,
            implementation=implementation, activation=jax.nn.silu,
        )  # fmt: skip
        z = (reference.wide(p.x) - p.along(center)) * p.along(slope) + p.along(offset)
        z = z + (reference.wide(residual) if added else 0)
        sigmoid = 1 / (1 + np.exp(-z))
        want = reference.wide(dy) * sigmoid * (1 + z * (1 - sigmoid))
        size = np.abs(reference.wide(dy)) * (4 + np.abs(z)) ** 2
        p.assert_full(got, want, size)


def derivative(activation, z):
    """activation'(z) in float64."""
    if activation == "relu":
        return (z > 0).astype(float)
    sigmoid = 1 / (1 + np.exp(-z))
    return sigmoid * (1 + z * (1 - sigmoid))


@every
@in_two_layouts
@masked_or_not
@pytest.mark.parametrize("part", ["other", "affine"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gated_sums(implementation, dtype, layout, mask, part, activation):
    with precision(dtype):
        p = problem(layout, dtype, mask)
        a, center, multiplier, *line = p.full(), *(p.vector() for _ in range(4))
        scaled, total, moment = p.call(
            calculus.sums, a, p.x, center, multiplier, p.where, *line,
            implementation=implementation, gate=Gate(part, getattr(jax.nn, activation)),
        )  # fmt: skip
        distance = reference.wide(p.x) - p.along(center)
        factor = derivative(activation, distance * p.along(line[0]) + p.along(line[1]))
        first, summed = (factor, 1) if part == "other" else (1, factor)
        p.assert_sum(total, reference.wide(a) * summed)
        p.assert_sum(moment, reference.wide(a) * summed * distance)
        want = reference.wide(a) * first * p.along(multiplier)
        size = np.abs(reference.wide(a) * p.along(multiplier)) * 40
        p.assert_full(scaled, want, size)


@every
@in_two_layouts
@masked_or_not
@pytest.mark.parametrize("part", ["other", "affine"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gated_expand(implementation, dtype, layout, mask, part, activation):
    with precision(dtype):
        p = problem(layout, dtype, mask)
        a = p.full()
        multiplier, slope, offset, center, *line = (p.vector() for _ in range(6))
        (got,) = p.call(
            calculus.expand, a, multiplier, slope, offset, p.x, center, p.where, *line,
            implementation=implementation, gate=Gate(part, getattr(jax.nn, activation)),
        )  # fmt: skip
        distance = reference.wide(p.x) - p.along(center)
        factor = derivative(activation, distance * p.along(line[0]) + p.along(line[1]))
        first, last = (factor, 1) if part == "other" else (1, factor)
        terms = [
            first * reference.wide(a) * p.along(multiplier),
            p.counted(last * distance * p.along(slope)),
            p.counted(last * p.along(offset)),
        ]
        size = 40 * (1 + sum(map(np.abs, terms)))
        p.assert_full(got, sum(terms), size)


@every
def test_gate_of_relu_passes_where_the_output_is_positive(implementation):
    x = jnp.array([[-1.0], [2.0], [3.0]])
    one, zero = jnp.ones(1), jnp.zeros(1)
    (got,) = calculus.gate(
        jnp.full((3, 1), 5.0), x, zero, one, zero, None,
        axes=(1,), implementation=implementation, activation=jax.nn.relu,
    )  # fmt: skip
    np.testing.assert_array_equal(got, [[0.0], [5.0], [5.0]])


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masked_nan_does_not_reach_the_moments(implementation, dtype):
    x = jnp.array([[1.0], [jnp.nan], [3.0], [jnp.inf]], dtype)
    where = jnp.array([[True], [False], [True], [False]])
    center, delta, m2 = calculus.moments(
        x, jnp.zeros(1), jnp.full(1, 2.0), where,
        axes=(1,), implementation=implementation, floor=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal([center + delta, m2], [[2.0], [2.0]])


@every
def test_a_nan_stays_in_its_channel(implementation):
    x = jnp.array([[1.0, jnp.nan], [3.0, 0.0]])
    center, delta, m2 = calculus.moments(
        x, jnp.zeros(2), jnp.full(2, 2.0), None,
        axes=(1,), implementation=implementation, floor=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal([(center + delta)[0], m2[0]], [2.0, 2.0])
    assert jnp.isnan((center + delta)[1])


@every
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e5])
def test_the_mean_in_two_parts_is_better_than_one_number(implementation, dtype, ratio):
    x = jnp.asarray(np.random.default_rng(0).normal(ratio, 1, (1000, 3)), dtype)
    center, delta, _ = calculus.moments(
        x, jnp.zeros(3), jnp.full(3, 1000.0), None,
        axes=(1,), implementation=implementation, floor=0.0,
    )  # fmt: skip
    _, mean, m2 = reference.moments(x)
    got = reference.wide(center) + reference.wide(delta)
    limit = 4 * reference.statistics_error(1000, x.dtype) * np.sqrt(m2 / 1000)
    assert (np.abs(got - mean) <= limit).all()


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_long_constant_channel_has_its_mean_in_two_parts(implementation, dtype):
    x = jnp.full((300_007, 1), 1e4, dtype)
    center, delta, m2 = calculus.moments(
        x, jnp.zeros(1), jnp.full(1, 300_007.0), None,
        axes=(1,), implementation=implementation, floor=1e-5,
    )  # fmt: skip
    exact = float(x[0, 0])
    assert abs(float(center[0]) + float(delta[0]) - exact) <= 1e-6
    assert m2[0] <= 300_007 * 1e-8


@every
@pytest.mark.parametrize("masked", [False, True])
def test_vmap_is_a_loop(implementation, masked):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 1, (4, 16, 3)), jnp.float32)
    where = x[..., :1] > 1.5 if masked else None
    state = jaxbn.init_state(3)

    def layer(x, where):
        return jaxbn.batch_norm(x, state, where=where, implementation=implementation)

    got = jax.vmap(layer, (0, 0 if masked else None))(x, where)
    each = [layer(x[i], where[i] if masked else None) for i in range(4)]
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    chex.assert_trees_all_close(got, want, atol=64 * 2.0**-24)


@every
@of_all_types
@with_masks
def test_the_layer_matches_the_reference(implementation, dtype, mask):
    with precision(dtype):
        p = problem("images last", dtype, mask, mean=1.0)
        state = jaxbn.init_state(p.features)
        scale, bias = p.vector(), p.vector()
        y, _ = jaxbn.batch_norm(
            p.x, state, scale, bias, where=p.where, implementation=implementation
        )
        want = reference.batch_norm(p.x, scale, bias, where=p.where)
        size = 4 * np.abs(want).max() * (2 + np.sqrt(p.rows) / 8)
        p.assert_full(y, want, size)


@every
def test_the_implementation_asked_for_is_the_one_that_runs(implementation):
    def layer(x):
        return jaxbn.batch_norm(x, jaxbn.init_state(3), implementation=implementation)[
            0
        ]

    text = str(jax.make_jaxpr(layer)(jnp.ones((8, 3))))
    assert f"implementation={implementation}" in text


@every
def test_the_environment_chooses_the_implementation(implementation, monkeypatch):
    monkeypatch.setenv("JAXBN_IMPLEMENTATION", implementation)
    fresh = functools.partial(jaxbn.moments)  # JAX remembers what it has traced
    text = str(jax.make_jaxpr(fresh)(jnp.ones((8, 3))))
    assert f"implementation={implementation}" in text


def test_at_least_the_reference_implementation_can_run():
    assert "xla" in IMPLEMENTATIONS
