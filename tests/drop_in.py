"""What the adapters of both Flax interfaces are tested on."""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

DEVICES, ROWS, CHANNELS = 8, 4, 3
VALID = np.array([0, 1, 2, 4, 4, 3, 4, 4])
GROUPS = ((0, 1, 2), (7, 3), (4, 5, 6))
KEY = jax.random.key(0)

# Two orders of the same float32 computation may differ by so much of the result.
TOLERANCE = 64 * float(jnp.finfo(jnp.float32).eps)


def normal(shape, dtype=np.float32, seed=1):
    """Values in NumPy: what is computed outside of programs costs no compilation."""
    values = np.random.default_rng(seed).normal(0.5, 1.5, shape)
    if jnp.issubdtype(dtype, jnp.integer):
        return (10 * values).astype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return (values + 1j * values[::-1]).astype(dtype)
    return values.astype(dtype)


class Case(NamedTuple):
    """A layer of four features and its input.

    Attributes:
        shape, dtype: of the input.
        options: of the layer.
        mask: whether some positions do not count.
        rounded: a type that Flax rounds to on the way, or None.
    """

    shape: tuple[int, ...] = (16, 4)
    dtype: Any = jnp.float32
    options: Any = types.MappingProxyType({})
    mask: bool = False
    rounded: Any = None

    @property
    def x(self):
        return normal(self.shape, self.dtype)

    @property
    def call(self):
        if not self.mask:
            return {}
        return {"mask": np.arange(self.shape[0]).reshape(-1, *[1] * 3) % 3 != 0}

    @property
    def tolerance(self):
        if self.rounded is None:
            return TOLERANCE
        return 4 * float(jnp.finfo(self.rounded).eps)


def random_start(key, shape, dtype=jnp.float32):
    return 1 + 0.1 * jax.random.normal(key, shape, dtype)


_RANDOM = {"scale_init": random_start, "bias_init": random_start}
_16 = jnp.bfloat16
CASES = {
    "defaults": Case(),
    "axis": Case((8, 4, 5), options={"axis": 1, "use_bias": False, **_RANDOM}),
    "numbers": Case(
        options={"momentum": 0.5, "epsilon": 0.1, "use_fast_variance": False}
    ),
    "no-scale": Case(options={"use_scale": False, **_RANDOM}),
    "neither": Case(options={"use_scale": False, "use_bias": False}),
    "mask": Case((16, 3, 5, 4), mask=True, options=_RANDOM),
    "x16": Case(dtype=_16),
    "x16-plain": Case(dtype=_16, options={"use_scale": False, "use_bias": False}),
    "x16-p16": Case(dtype=_16, options={"param_dtype": _16, **_RANDOM}),
    "x16-d16": Case(dtype=_16, options={"dtype": _16}),
    "x32-d16": Case(options={"dtype": _16}),
    "x32-p16": Case(options={"param_dtype": _16, **_RANDOM}),
    "half": Case(dtype=jnp.float16, options={"dtype": jnp.float16}),
    "mixed": Case(dtype=_16, options={"dtype": jnp.float16}),
    "integer": Case(dtype=jnp.int32),
}
# Types that the slow suite adds to those of their kind.
SWEPT = (
    "neither", "x16-plain", "x16-d16", "x32-p16", "mixed", "narrow", "narrow-state",
    "keep-types",
)  # fmt: skip


def together(names, changing, name):
    """Those whose programs are compiled with the one of `name`.

    Where the first step may change the type of the statistics it is compiled twice.
    """
    kinds = {n: (n in changing, n in SWEPT) for n in names}
    return tuple(n for n in names if kinds[n] == kinds[name])


def by_vmap(one):
    return jax.vmap(one, (None, 0), (0, None), axis_name="d")


def by_pmap(one):
    return jax.pmap(one, axis_name="d", in_axes=(None, 0), out_axes=(0, None))


def by_shard_map(one, *, check_vma):
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
    return jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(P(), P("d")),
        out_specs=(P("d"), P()),
        check_vma=check_vma,
    )


# Each maps a function of (shared, batch) to (values, shared) over all devices.
MODES = {
    "vmap": by_vmap,
    "pmap": by_pmap,
    "shard_map-vma=True": lambda one: by_shard_map(one, check_vma=True),
    "shard_map-vma=False": lambda one: by_shard_map(one, check_vma=False),
}


def sharded(shape=(DEVICES, ROWS, CHANNELS)):
    """A batch over devices, and a mask with another number of valid rows on each."""
    return normal(shape), (np.arange(ROWS) < VALID[:, None])[..., None]


def assert_close(got, want, tolerance=TOLERANCE):
    """Structures, shapes and types are equal, values up to a share of the largest.

    A result of 16 bits may be rounded to the other side.
    """

    def compare(path, a, b):
        where = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        allowed = tolerance + (jnp.finfo(a.dtype).eps if a.dtype.itemsize == 2 else 0)
        wide = np.complex128 if np.iscomplexobj(a) else np.float64
        a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
        error = np.max(np.abs(a - b), initial=0)
        assert error <= allowed * np.max(np.abs(b), initial=1), (where, error)

    jax.tree_util.tree_map_with_path(compare, got, want)


def differentiate(run, params, x, valid):
    """Values, statistics and gradients of layers; `run` gives dictionaries of them."""

    def loss(params, x):
        y, new = run(params, x)
        total = sum(jnp.sum(jnp.where(valid[k], jnp.sin(y[k]), 0)) for k in y)
        return total, (y, new)

    return jax.grad(loss, (0, 1), has_aux=True)(params, x)
