"""Every implementation does what `jaxbn.backends.contract` says, against NumPy.

A new implementation is one more row: the list comes from `jaxbn.implementations`. All
facts about a layout and a type are rows of a table that one compiled program computes.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxbn
from jaxbn.backends import xla
from jaxbn.backends.contract import Gate
from jaxbn.core import calculus

IMPLEMENTATIONS = [n for n, why in jaxbn.implementations().items() if why is None]
LAYOUTS = {
    "channels last": ((64, 5), (1,)),
    "channels first": ((5, 64), (0,)),
    "images first": ((4, 5, 3, 7), (1,)),
    "images last": ((4, 3, 7, 5), (3,)),
    "two feature axes": ((3, 17, 2, 5), (0, 3)),
    "groups of images first": ((2, 6, 3, 7), (0, 2)),
    "one row": ((1, 5), (1,)),
    "one channel": ((129, 1), (1,)),
    "no rows": ((0, 5), (1,)),
    "only features": ((5,), (0,)),
}
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# The loops for a TPU, which differ in this one and run everywhere.
every_moments = pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "tpu"])
# All layouts in the two types that matter most, all types in two layouts. Of the two
# types the quick suite takes one for each layout, in turns, and leaves out those that
# are others without images or rows; `xla` knows no layouts, so there it takes three.
QUICK = {
    "xla": ("images first", "images last", "no rows"),
    "native": [n for n in LAYOUTS if not n.startswith(("channels", "only"))],
}
CASES = [
    pytest.param(layout, dtype, name, marks=[] if quick else [pytest.mark.slow])
    for name in IMPLEMENTATIONS
    for i, layout in enumerate(LAYOUTS)
    for j, dtype in enumerate(("bfloat16", "float32"))
    for quick in [(i + j) % 2 and layout in QUICK.get(name, LAYOUTS)]
] + [
    (layout, dtype, name)
    for name in IMPLEMENTATIONS
    for layout, dtype in [("images first", "float16"), ("images last", "float64")]
]
in_all_layouts = pytest.mark.parametrize(("layout", "dtype", "implementation"), CASES)


class Problem:
    """Operands of one layout, and their float64 values."""

    def __init__(self, layout, dtype, seed=0, mean=0.0):
        self.shape, self.axes = LAYOUTS[layout]
        self.dtype = jnp.dtype(dtype)
        self.wide = np.dtype("float64" if dtype == "float64" else "float32")
        self.generator = np.random.default_rng(seed)
        self.features = tuple(self.shape[i] for i in self.axes)
        self.rows = int(np.prod(self.shape)) // int(np.prod(self.features))
        self.over = tuple(i for i in range(len(self.shape)) if i not in self.axes)
        self.x = self.full(mean)

    def full(self, mean=0.0):
        return self.generator.normal(mean, 1, self.shape).astype(self.dtype)

    def vector(self, mean=0.0):
        return self.generator.normal(mean, 1, self.features).astype(self.wide)

    def along(self, vector):
        return reference.along(vector, self.x, self.axes)

    def masks(self):
        """A mask of every kind that implementations tell apart; None counts all."""
        leading = self.over[:1]
        of_rows = [1 if i in self.axes else n for i, n in enumerate(self.shape)]
        first = [n if i in leading else 1 for i, n in enumerate(self.shape)]
        kinds = {"rows": of_rows, "first rows": first, "full": self.shape}
        if self.axes[0] == 0 and leading:
            kinds["rows of each group"] = [self.shape[0], *first[1:]]
        found = {k: self.generator.random(kept) < 0.7 for k, kept in kinds.items()}
        return {"none": None, "all false": np.zeros(first, bool)} | found

    def total(self, values, where):
        """The sum over the rows of the values that count."""
        return np.where(True if where is None else where, values, 0).sum(self.over)

    def counted(self, values, where):
        return values if where is None else np.where(where, values, 0)

    def assert_sum(self, got, terms, where, name):
        """A sum in the statistics type may lose sqrt(n) + 32 roundings of its terms."""
        assert got.dtype == self.wide and got.shape == self.features, name
        size = np.sqrt(self.total(terms**2, where) * max(self.rows, 1))
        limit = reference.statistics_error(self.rows, self.dtype) * size
        assert (np.abs(got - self.total(terms, where)) <= limit).all(), name

    def assert_full(self, got, want, size, name):
        """Rounded once to the type of x, and eight times to that of the statistics."""
        assert got.dtype == self.dtype and got.shape == self.shape, name
        step = reference.unit_roundoff(self.dtype)
        limit = 2 * step * np.abs(want) + 16 * size * reference.statistics_roundoff(
            self.dtype
        )
        tiny = float(jnp.finfo(self.dtype).smallest_subnormal)
        assert (np.abs(reference.wide(got) - want) <= limit + tiny).all(), name


def precision(dtype):
    return jax.enable_x64(dtype == "float64")


def derivative(activation, z):
    """activation'(z) in float64."""
    if activation == "relu":
        return (z > 0).astype(float)
    sigmoid = 1 / (1 + np.exp(-z))
    return sigmoid * (1 + z * (1 - sigmoid))


class Table(Problem):
    """Calls of the primitives: name -> (call, operands, check of the results)."""

    def __init__(self, layout, dtype):
        super().__init__(layout, dtype)
        self.a, self.residual, self.dy = self.full(), self.full(), self.full()
        self.center, self.slope, self.offset, self.multiplier, *self.line = (
            self.vector() for _ in range(6)
        )
        self.A = reference.wide(self.a)
        self.distance = reference.wide(self.x) - self.along(self.center)
        self.calls = {}
        self.fill()

    def fill(self):
        relu = functools.partial(Gate, activation=jax.nn.relu)
        silu = functools.partial(Gate, activation=jax.nn.silu)
        for kind, where in self.masks().items():
            self.sums(f"sums, {kind}", where)
            self.expand(f"expand, {kind}", where, scaled=True)
            self.expand(f"relu gated expand, {kind}", where, relu("other"), scaled=True)
            if kind not in ("none", "first rows"):
                continue
            self.sums(f"scaled sums, {kind}", where, scaled=True)
            self.expand(f"expand of an array, {kind}", where)
            self.expand(f"expand of nothing, {kind}", where, alone=True)
            self.sums(f"sums of relu gated, {kind}", where, relu("affine"), scaled=True)
            self.sums(f"relu gated and sums, {kind}", where, relu("other"), scaled=True)
            for part in ("other", "affine"):
                by = {"gate": silu(part), "scaled": True}
                self.sums(f"{part} silu gated sums, {kind}", where, **by)
                self.expand(f"{part} silu gated expand, {kind}", where, **by)
        for name in ("relu", "relu6", "silu"):
            self.expand(f"{name} of expand", None, activation=name)
            self.expand(
                f"{name} of expand of nothing", None, alone=True, activation=name
            )
        for name in ("relu", "silu"):
            self.gate(f"gate of {name}", None, name)
            self.gate(f"gate of {name} with a residual", self.residual, name)

    def factors(self, gate):
        """The gate's factors of the other part and of the affine part."""
        if gate is None:
            return 1, 1
        inner = self.distance * self.along(self.line[0]) + self.along(self.line[1])
        factor = derivative(gate.activation.__name__, inner)
        return (factor, 1) if gate.part == "other" else (1, factor)

    def sums(self, name, where, gate=None, *, scaled=False):
        first, summed = self.factors(gate)

        def check(results):
            *begin, total, moment = results
            self.assert_sum(total, self.A * summed, where, name)
            self.assert_sum(moment, self.A * summed * self.distance, where, name)
            assert len(begin) == scaled
            if scaled:
                want = self.A * self.along(self.multiplier)
                size = np.abs(want) * (1 if gate is None else 40)
                self.assert_full(begin[0], want * first, size, name)

        multiplier = self.multiplier if scaled else None
        given = (self.a, self.x, self.center, multiplier, where)
        call = functools.partial(calculus.sums, gate=gate)
        self.calls[name] = call, (*given, *(self.line if gate else ())), check

    def expand(
        self, name, where, gate=None, *, scaled=False, alone=False, activation=None
    ):
        a = None if alone else self.a
        first, last = self.factors(gate)
        weight = self.along(self.multiplier) if scaled else 1
        terms = [
            self.counted(last * self.distance * self.along(self.slope), where),
            self.counted(last * self.along(self.offset) + 0 * self.distance, where),
            0 if a is None else first * self.A * weight,
        ]
        want, size = sum(terms), sum(map(np.abs, terms))
        size = size if gate is None else 40 * (size + 1)
        if activation is not None:
            want, size = reference.ACTIVATIONS[activation](want), size + 4

        def check(results):
            self.assert_full(results[0], want, size, name)

        vectors = (self.slope, self.offset, self.x, self.center, where)
        function = None if activation is None else getattr(jax.nn, activation)
        call = functools.partial(calculus.expand, gate=gate, activation=function)
        given = (a, self.multiplier if scaled else None, *vectors)
        self.calls[name] = call, (*given, *(self.line if gate else ())), check

    def gate(self, name, residual, activation):
        z = self.distance * self.along(self.slope) + self.along(self.offset)
        z = z if residual is None else z + reference.wide(residual)
        want = reference.wide(self.dy) * derivative(activation, z)
        size = np.abs(reference.wide(self.dy)) * (4 + np.abs(z)) ** 2

        def check(results):
            self.assert_full(results[0], want, size, name)

        by = {"activation": getattr(jax.nn, activation)}
        given = (self.dy, self.x, self.center, self.slope, self.offset, residual)
        self.calls[name] = functools.partial(calculus.gate, **by), given, check


@in_all_layouts
def test_primitives(implementation, layout, dtype):
    """Sums, expand and gate for every mask, gate and second operand."""
    with precision(dtype):
        table = Table(layout, dtype)
        by = {"axes": table.axes, "implementation": implementation}

        @jax.jit
        def program(operands):
            return {k: table.calls[k][0](*v, **by) for k, v in operands.items()}

        results = program({k: given for k, (_, given, _) in table.calls.items()})
        for name, values in jax.tree.map(np.asarray, results).items():
            table.calls[name][-1](values)


def moments(implementation, axes):
    if implementation in ("tpu", "gpu"):
        loops = xla.kernels(platform=implementation)
        return functools.partial(loops.moments, axes=axes)
    by = {"axes": axes, "implementation": implementation}
    return functools.partial(calculus.moments, **by)


WITH_ACCELERATORS = [
    *CASES,
    ("channels last", "bfloat16", "gpu"),
    ("images first", "float32", "gpu"),
    ("images first", "float32", "tpu"),
    ("channels last", "bfloat16", "tpu"),
    ("no rows", "float16", "tpu"),
]


@pytest.mark.parametrize(("layout", "dtype", "implementation"), WITH_ACCELERATORS)
def test_moments(implementation, layout, dtype):
    """The mean is near zero or a thousand standard deviations off; or all is huge."""
    with precision(dtype):
        p = Problem(layout, dtype)
        masks = p.masks()
        found = moments(implementation, p.axes)

        @jax.jit
        def program(x, masks):
            return {k: found(x, where) for k, where in masks.items()}

        narrow = dtype == "float16"
        for mean, std in ((3.0, 1), (1e3, 1), (0, 1 if narrow else 1e30)):
            x = p.generator.normal(mean, std, p.shape).astype(p.dtype)
            for kind, found in program(x, masks).items():
                where, name = masks[kind], f"{kind}, mean {mean}, std {std}"
                assert_moments(x, p.axes, where, found, p.wide, name)


def assert_moments(x, axes, where, found, wide, name):
    center, delta, m2, unit = map(np.asarray, found)
    assert center.dtype == delta.dtype == m2.dtype == unit.dtype == wide, name
    center, delta, m2, unit = map(reference.wide, (center, delta, m2, unit))
    count, mean, want = reference.moments(x, axis=axes, where=where)
    rows = int(count.max(initial=0))
    error = reference.statistics_error(rows, x.dtype)
    spread = np.sqrt(want / np.maximum(count, 1))
    got = np.where(count > 0, center + delta, 0)
    # A constant channel has no spread: the sum is rounded at the size of x.
    least = 4 * reference.statistics_roundoff(x.dtype) * np.abs(mean)
    assert (np.abs(got - mean) <= 4 * error * spread + least).all(), name
    assert (m2 >= 0).all(), name
    assert (np.abs(m2 * unit**2 - want) <= 2 * error * want + count * least**2).all(), (
        name
    )


LAYERS = [("images last", "rows"), ("images first", "first rows")]


# In the quick suite one half of the types for each implementation, in turns.
LAYER_CASES = [
    pytest.param(name, dtype, marks=[] if (i + j) % 2 else [pytest.mark.slow])
    for i, name in enumerate(IMPLEMENTATIONS)
    for j, dtype in enumerate(("float16", "bfloat16", "float64", "float32"))
]


@pytest.mark.parametrize(("implementation", "dtype"), LAYER_CASES)
def test_the_layer_matches_the_reference(implementation, dtype):
    with precision(dtype):
        problems = {layout: Problem(layout, dtype, mean=1.0) for layout, _ in LAYERS}
        inputs = [
            (p, where, p.vector(), p.vector())
            for layout, kind in LAYERS
            for p in [problems[layout]]
            for where in (None, p.masks()[kind], p.masks()["full"])
        ]

        @jax.jit
        def program(operands):
            pairs = zip(inputs, operands, strict=True)
            return [
                jaxbn.batch_norm(
                    x, jaxbn.init_state(scale.shape[0]), scale, bias, axis=p.axes,
                    where=where, implementation=implementation,
                )[0]
                for (p, *_), (x, where, scale, bias) in pairs
            ]  # fmt: skip

        ys = program([(p.x, *given) for p, *given in inputs])
        for y, (p, where, scale, bias) in zip(ys, inputs, strict=True):
            want = reference.batch_norm(p.x, scale, bias, axis=p.axes, where=where)
            size = 4 * np.abs(want).max() * (2 + np.sqrt(p.rows) / 8)
            p.assert_full(np.asarray(y), want, size, str(p.shape))


def moments_of(x, where=None, *, implementation):
    """The mean in two parts and m2 of a matrix, one channel to a column."""
    found = jax.jit(moments(implementation, (1,)))(x, where)
    center, delta, m2, unit = map(reference.wide, found)
    return center, delta, m2 * unit**2


@every
def test_gate_of_relu_passes_where_the_output_is_positive(implementation):
    x = np.array([[-1.0], [2.0], [3.0]], np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    (got,) = calculus.gate(
        np.full((3, 1), 5, np.float32), x, zero, one, zero, None,
        axes=(1,), implementation=implementation, activation=jax.nn.relu,
    )  # fmt: skip
    np.testing.assert_array_equal(got, [[0.0], [5.0], [5.0]])


@every_moments
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masked_nan_does_not_reach_the_moments(implementation, dtype):
    x = np.array([[1.0], [np.nan], [3.0], [np.inf]]).astype(jnp.dtype(dtype))
    where = np.array([[True], [False], [True], [False]])
    center, delta, m2 = moments_of(x, where, implementation=implementation)
    np.testing.assert_array_equal([center + delta, m2], [[2.0], [2.0]])


@every_moments
def test_a_nan_stays_in_its_channel(implementation):
    x = np.array([[1.0, np.nan], [3.0, 0.0]], np.float32)
    center, delta, m2 = moments_of(x, implementation=implementation)
    np.testing.assert_array_equal([(center + delta)[0], m2[0]], [2.0, 2.0])
    assert np.isnan((center + delta)[1])


@every_moments
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_mean_in_two_parts_is_better_than_one_number(implementation, dtype):
    ratios = np.array([0, 1e2, 1e4, 1e5]).repeat(3)
    x = np.random.default_rng(0).normal(ratios, 1, (1000, 12)).astype(jnp.dtype(dtype))
    center, delta, _ = moments_of(x, implementation=implementation)
    _, mean, m2 = reference.moments(x)
    limit = 4 * reference.statistics_error(1000, x.dtype) * np.sqrt(m2 / 1000)
    assert (np.abs(center + delta - mean) <= limit).all()


@every_moments
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_long_constant_channel_has_its_mean_in_two_parts(implementation, dtype):
    x = np.full((300_007, 1), 1e4, jnp.dtype(dtype))
    center, delta, m2 = moments_of(x, implementation=implementation)
    assert abs(center[0] + delta[0] - float(x[0, 0])) <= 1e-6
    assert m2[0] <= 300_007 * 1e-8


def far_away():
    """Batches of which a part lies 1e5 standard deviations from the others."""
    rows = np.random.default_rng(0).normal(size=(32, 256, 2)).astype(np.float32)
    first, last, half, alone = (rows.copy() for _ in range(4))
    for part in (first[0], last[-1], half[::2], alone[0, 0]):
        part += np.float32(1e5)
    ordered = np.sort(half.reshape(-1, 2), 0).reshape(rows.shape)
    turns = half * np.where(np.arange(256) % 2, 1, -1)[:, None].astype(np.float32)
    return {"first block": first, "last block": last, "half": half,
            "first row": alone, "sorted": ordered, "signs": turns}  # fmt: skip


@every_moments
def test_a_part_that_is_far_away_costs_few_digits(implementation):
    """A few 2^-24 of the variance for each of the 256 rows of a block."""
    for name, x in far_away().items():
        for rows in (x.reshape(-1, 2), 1e20 * x.reshape(-1, 2)):
            center, delta, m2 = moments_of(rows, implementation=implementation)
            _, mean, want = reference.moments(rows)
            assert (np.abs(m2 / want - 1) <= 512 * 2.0**-24).all(), name
            std = np.sqrt(want / len(rows))
            assert (np.abs(center + delta - mean) <= 512 * 2.0**-24 * std).all(), name


@every
@pytest.mark.parametrize("masked", [False, True])
def test_vmap_is_a_loop(implementation, masked):
    x = np.random.default_rng(0).normal(2, 1, (4, 16, 3)).astype(np.float32)
    where = x[..., :1] > 1.5 if masked else None
    state = jaxbn.init_state(3)

    def layer(x, where):
        return jaxbn.batch_norm(x, state, where=where, implementation=implementation)

    @jax.jit
    def both(x, where):
        each = [layer(x[i], where[i] if masked else None) for i in range(4)]
        loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        return jax.vmap(layer, (0, 0 if masked else None))(x, where), loop

    chex.assert_trees_all_close(*both(x, where), atol=64 * 2.0**-24)


@every
def test_the_implementation_asked_for_is_the_one_that_runs(implementation):
    def layer(x):
        options = {"implementation": implementation}
        return jaxbn.batch_norm(x, jaxbn.init_state(3), **options)[0]

    text = str(jax.make_jaxpr(layer)(np.ones((8, 3), np.float32)))
    assert f"implementation={implementation}" in text


@every
def test_the_environment_chooses_the_implementation(implementation, monkeypatch):
    monkeypatch.setenv("JAXBN_IMPLEMENTATION", implementation)
    fresh = functools.partial(jaxbn.moments)  # JAX remembers what it has traced
    text = str(jax.make_jaxpr(fresh)(np.ones((8, 3), np.float32)))
    assert f"implementation={implementation}" in text


@pytest.mark.parametrize("masked", [False, True])
def test_a_program_for_a_tpu_has_no_float64(masked):
    def layer(x):
        where = x[:, :1] > 0 if masked else None
        return jaxbn.batch_norm(x, jaxbn.init_state(3), where=where)

    traced = jax.jit(layer).trace(np.ones((8, 3), np.float32))
    for platform, expected in (("tpu", False), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("f64" in text) == expected, platform


def test_at_least_the_reference_implementation_can_run():
    assert "xla" in IMPLEMENTATIONS


REACHED = {
    "images first": ("none", "all false", "first rows"),
    "images last": ("none", "all false", "first rows", "rows"),
    "groups of images first": ("none", "all false", "first rows", "rows of each group"),
}


@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the library is not built")
@pytest.mark.parametrize("layout", REACHED)
def test_the_table_reaches_the_kernels_of_native_with_masks(layout):
    """A mask of a kind that falls back to `xla` would test `xla` twice."""
    table = Table(layout, "float32")
    for name, (call, given, _) in table.calls.items():
        kind = name.split(", ")[-1]
        if "silu" in name or kind not in table.masks():
            continue
        by = {"axes": table.axes, "implementation": "native"}
        text = jax.jit(functools.partial(call, **by)).lower(*given).as_text()
        assert ("@jaxbn_" in text) == (kind in REACHED[layout]), name
