"""Random layers: every implementation against each other and against float64 NumPy.

A failure prints the seed and the case. `JAXBN_FUZZ_SEED` repeats a run, and
`JAXBN_FUZZ_SECONDS` lengthens it:

    JAXBN_FUZZ_SECONDS=1800 python -m pytest -m slow tests/backends/test_fuzz.py -s
"""

import functools
import os
import secrets
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxbn

SECONDS = float(os.environ.get("JAXBN_FUZZ_SECONDS", "120"))
IMPLEMENTATIONS = [n for n, why in jaxbn.implementations().items() if why is None]
DTYPES = ("float16", "bfloat16", "float32", "float64")
LIMITS = {"float16": 6e-3, "bfloat16": 5e-2, "float32": 1e-4, "float64": 1e-10}
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,)}
SLOPES = {
    None: lambda z: np.ones_like(z),
    "relu": lambda z: (z > 0) * 1.0,
    "relu6": lambda z: ((z > 0) & (z < 6)) * 1.0,
    "leaky_relu": lambda z: np.where(z > 0, 1.0, 0.01),
    "silu": lambda z: (s := 1 / (1 + np.exp(-z))) * (1 + z * (1 - s)),
}
MASKS = ("none", "first axis", "rows", "some axes", "full")
VARIANTS = ("random", "all true", "all false", "one true")
COTANGENTS = ("everywhere", "zero where masked", "zero where valid")


class Case(NamedTuple):
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str
    mask: tuple[int, ...] | None
    activation: str | None
    residual: bool
    residuals: str
    batched: bool


def draw(generator: np.random.Generator) -> Case:
    rank = generator.integers(2, 6)
    largest = {2: 300, 3: 60, 4: 20, 5: 9}[int(rank)]
    shape = tuple(int(n) for n in generator.integers(1, largest, rank))
    count = 1 if generator.random() < 0.7 or rank == 2 else 2
    axes = tuple(sorted(int(a) for a in generator.choice(rank, count, replace=False)))
    kind = generator.choice(MASKS, p=[0.1, 0.3, 0.3, 0.2, 0.1])
    of_rows = [1 if i in axes else n for i, n in enumerate(shape)]
    mask = {
        "none": None,
        "first axis": (shape[0], *[1] * (rank - 1)),
        "rows": tuple(of_rows),
        "some axes": tuple(n if generator.random() < 0.5 else 1 for n in shape),
        "full": shape,
    }[str(kind)]
    activation = generator.choice([None, "relu", "relu6", "leaky_relu", "silu"])
    residuals = generator.choice(["input", "output", "recompute"], p=[0.6, 0.2, 0.2])
    rows = np.prod([n for i, n in enumerate(shape) if i not in axes])
    residuals = "input" if rows < 8 else residuals
    if residuals == "output" and activation not in (None, "leaky_relu"):
        activation = "leaky_relu"
    return Case(
        shape, axes, str(generator.choice(DTYPES)), mask, activation,
        bool(generator.random() < 0.3), str(residuals), bool(generator.random() < 0.3),
    )  # fmt: skip


def masks(case: Case, generator) -> np.ndarray:
    """A mask for each of VARIANTS."""
    shape = case.mask or ()
    one = np.zeros(shape, bool)
    one.flat[generator.integers(one.size)] = True
    drawn = generator.random(shape) < 0.7
    if case.residuals == "output":
        # A channel with one value has no spread: z is multiplied by 1 / sqrt(epsilon),
        # and the rounded output does not tell x well. Masks: `test_masked_variants`.
        one = drawn = np.ones(shape, bool)
    return np.stack([drawn, np.ones(shape, bool), np.zeros(shape, bool), one])


def expected(case: Case, x, where, ct_of, scale, bias, residual):
    """y, the cotangent and the gradients of x, scale and bias, in float64."""
    axis, over = case.axes, reference.rows(x, case.axes)
    count, mean, m2 = reference.moments(x, axis=axis, where=where)
    seen = count > 0
    mean, var = np.where(seen, mean, 0), np.where(seen, m2 / np.maximum(count, 1), 1)
    z = reference.normalize(x, mean, var, scale, bias, axis=axis)
    normal = reference.normalize(x, mean, var, axis=axis)
    z = z if residual is None else z + reference.wide(residual)
    ct = ct_of(z)
    valid = np.broadcast_to(True if where is None else where, x.shape)
    inner = reference.wide(ct) * SLOPES[case.activation](z)
    d_bias, d_scale = inner.sum(over), (inner * normal).sum(over)
    along = functools.partial(reference.along, x=x, axis=axis)
    spread = (along(d_bias) + normal * along(d_scale)) / along(np.maximum(count, 1))
    dx = inner - np.where(valid & along(seen).astype(bool), spread, 0)
    dx = dx * along(scale) / np.sqrt(along(var) + 1e-5)
    return reference.ACTIVATIONS[case.activation](z), ct, (dx, d_scale, d_bias, inner)


def program(case: Case, implementation: str):
    """y and gradients for a stack of masks and cotangents, in one compilation."""

    def layer(x, scale, bias, residual, where):
        state = jaxbn.init_state(scale.shape, dtype=scale.dtype)
        y, _ = jaxbn.batch_norm(
            x, state, scale, bias, axis=case.axes, residual=residual,
            where=None if case.mask is None else where, activation=case.activation,
            save=case.residuals, implementation=implementation,
        )  # fmt: skip
        return y

    if case.batched:  # the case and a second member, which must not disturb it
        single = layer

        def layer(x, scale, bias, residual, where):
            pair = jnp.stack([x, x[::-1] * 2])
            other = None if residual is None else jnp.stack([residual, residual])
            dims = (0, None, None, None if residual is None else 0, None)
            return jax.vmap(single, dims)(pair, scale, bias, other, where)[0]

    @jax.jit
    def run(x, scale, bias, residual, where, cts):
        def one(pair):
            where, ct = pair
            inputs = (x, scale, bias, residual)
            y, back = jax.vjp(lambda *given: layer(*given, where), *inputs)
            return y, back(ct)

        return jax.lax.map(one, (where, cts))

    return run


def check(case: Case, generator: np.random.Generator) -> None:
    wide = np.float64 if case.dtype == "float64" else np.float32
    features = tuple(case.shape[a] for a in case.axes)
    normal = generator.standard_normal
    mean, spread = normal(features) * 3, generator.uniform(0.5, 2, features)
    x = normal(case.shape) * reference.along(spread, np.empty(case.shape), case.axes)
    x = (x + reference.along(mean, x, case.axes)).astype(jnp.dtype(case.dtype))
    # A scale away from zero, which the mode "output" needs.
    scale = generator.choice([-1, 1], features) * generator.uniform(0.5, 2, features)
    scale, bias = scale.astype(wide), normal(features).astype(wide)
    residual = normal(case.shape).astype(x.dtype) if case.residual else None
    kinds = list(COTANGENTS) * len(VARIANTS)
    where = np.repeat(masks(case, generator), len(COTANGENTS), axis=0)
    limit = LIMITS[case.dtype]

    def cotangent(kind, mask):
        def of(z):
            ct = normal(case.shape)
            kept = {
                "everywhere": True, "zero where masked": mask,
                "zero where valid": ~mask,
            }[kind]  # fmt: skip
            for kink in KINKS.get(case.activation, ()):
                kept = kept & (np.abs(z - kink) > 20 * limit)
            return np.where(kept, ct, 0).astype(x.dtype)

        return of

    right = functools.partial(expected, case, x)
    with np.errstate(over="ignore"):  # exp(-z) where one value alone has a spread
        wanted = [
            right(w if case.mask else None, cotangent(k, w), scale, bias, residual)
            for k, w in zip(kinds, where, strict=True)
        ]
    cts = np.stack([ct for _, ct, _ in wanted])
    for implementation in IMPLEMENTATIONS:
        got = program(case, implementation)(x, scale, bias, residual, where, cts)
        ys, grads = jax.tree.map(np.asarray, got)
        for i, (y, _, gradients) in enumerate(wanted):
            named = f"{case} {implementation}, mask {VARIANTS[i // 3]}, ct {kinds[i]}"
            names = ("y", "dx", "dscale", "dbias", "dresidual")
            found = (ys[i], *(g[i] for g in grads if g is not None))
            for name, mine, want in zip(names, found, (y, *gradients), strict=False):
                # Sums may lose what their terms are rounded by; 1 guards all zeros.
                size = np.abs(want).max(initial=0) + np.sqrt(x.size) * 1e-2 + 1
                error = np.abs(reference.wide(mine) - want).max(initial=0)
                assert error <= limit * size, f"{named}: {name} is off by {error:.2g}"


@pytest.mark.slow
def test_random_layers_are_right_in_every_implementation():
    chosen = 0 if "CI" in os.environ else secrets.randbits(31)
    seed = int(os.environ.get("JAXBN_FUZZ_SEED", chosen))
    print(f"JAXBN_FUZZ_SEED={seed}")
    end, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        generator = np.random.default_rng([seed, number])
        case = draw(generator)
        with jax.enable_x64(case.dtype == "float64"):
            try:
                check(case, generator)
            except Exception as error:
                error.add_note(f"JAXBN_FUZZ_SEED={seed}, case {number}: {case}")
                raise
        number += 1
        if number % 50 == 0:
            jax.clear_caches()
    print(f"{number} cases")
