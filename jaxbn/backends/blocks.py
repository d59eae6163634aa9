"""The moments of blocks of rows, each about a value of its own.

A sum of n squares about a pivot p loses about eps * (1 + (mean - p)^2 / variance) of
the variance. If p is one of the values, (mean - p)^2 is one of the n terms whose
average is the variance, so the loss is at most eps * (1 + n), wherever the mean is.
Hence blocks of at most a few thousand rows, each with a pivot from its own data: one
pass over memory, and nothing depends on earlier batches.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import (
    counted,
    divisor,
    is_explicit,
    rows,
    split_axes,
    statistics_type,
)
from jaxbn.backends.merging import LARGE, Centered

# Rows of a block: fewer cost memory traffic for its sums, more cost digits.
_FEW, _MOST = 256, 4096
# On a TPU the sums stay on the chip, and a reshape of `x` is a copy there.
_FEW_ON_TPU = 32


def moments_of_blocks(
    x: Array, where: Array | None, axes: tuple[int, ...], devices: int, *, tpu: bool
):
    """The moments of the blocks of `x`, the axes that list them and those within.

    All axes are kept, those within a block with a size of one. No block has rows of two
    devices, if the first axis is split over `devices`, or others as the types tell.
    """
    x, where, outer, inner = _cut(x, where, axes, devices, _FEW_ON_TPU if tpu else _FEW)
    wide, every = statistics_type(x), range(x.ndim)
    if any(isinstance(x.shape[i], int) and x.shape[i] == 0 for i in inner):
        x = jnp.zeros([1 if i in inner else n for i, n in enumerate(x.shape)], x.dtype)
        where = jnp.zeros((1,) * x.ndim, bool)
    counts = None if where is None else lax.stop_gradient(where).astype(bool)
    if counts is not None and any(counts.shape[i] != 1 for i in inner):
        pivot = _pivot(x, counts, inner)
    else:
        # The only slice of `x`: with a second one a TPU copies it to another layout.
        pivot = first(x, inner)
    pivot, unit = pivot.astype(wide), _unit(pivot)
    distance = x.astype(wide) - lax.broadcast_in_dim(pivot, x.shape, every)
    distance = counted(distance, counts)
    if unit is not None:
        # Both sums are of one array: XLA:GPU then computes them in one kernel.
        distance = distance * lax.broadcast_in_dim(1 / unit, x.shape, every)
    weighted = counted(distance, where)
    total = weighted.sum(inner, keepdims=True)
    squares = (weighted * distance).sum(inner, keepdims=True)
    count = math.prod(x.shape[i] for i in inner)
    if where is not None:
        others = math.prod(x.shape[i] for i in inner if where.shape[i] == 1)
        count = where.sum(inner, dtype=wide, keepdims=True) * others
    delta = total / divisor(count)
    m2 = jnp.maximum(squares - total * delta, 0)
    delta = delta if unit is None else delta * unit
    return Centered(count, pivot, delta, m2, unit), outer, inner


def first(values: Array, axes) -> Array:
    """The first value along these axes, which stay with a size of one."""
    for i in axes:
        values = lax.slice_in_dim(values, 0, 1, axis=i)
    return values


def _unit(pivot: Array) -> Array | None:
    """A unit in which squares of float32 fit, told by a value of each block."""
    if jnp.finfo(pivot.dtype).maxexp != 128:
        return None
    return jnp.where(jnp.abs(pivot) > 2.0**40, LARGE, 1).astype(jnp.float32)


def _cut(x, where, axes, devices, least):
    """`x` and its mask with one axis cut in two, the axes of blocks and within them."""
    every, split = rows(x, axes), split_axes(x)
    outer = tuple(i for i in every if i == every[0] or i in split)
    inner = tuple(i for i in every if i not in outer)
    if not outer or not all(isinstance(n, int) for n in x.shape):  # or symbolic
        return x, where, outer, inner

    def size():
        return math.prod(x.shape[i] for i in inner)

    while len(inner) > 1 and size() > _MOST and size() >= _FEW * x.shape[inner[0]]:
        outer, inner = (*outer, inner[0]), inner[1:]
    # A reshape of what is split is refused where types tell it.
    if is_explicit(x) or (inner and size() >= least):
        return x, where, outer, inner
    # If the rows behind the first axis are few, or none, some of that axis joins them.
    n = x.shape[outer[0]]
    fitting = [
        d
        for d in range(1, min(n, _FEW) + 1)
        if d * size() <= _FEW and n % d == 0 and n // d % devices == 0
    ]
    each = max(fitting, default=1)
    if each == 1 and inner:
        return x, where, outer, inner
    return _joined(x, where, outer[0], inner, each)


def _joined(x, where, axis, inner, each):
    """Cuts `axis` into blocks of `each`, which become the first axis within a block."""

    def cut(array):
        n = array.shape[axis]
        parts = (n // each, each) if n != 1 else (1, 1)
        return array.reshape(*array.shape[:axis], *parts, *array.shape[axis + 1 :])

    inner = (axis + 1, *(i + 1 for i in inner))
    return cut(x), None if where is None else cut(where), (axis,), inner


def _pivot(x: Array, where: Array, inner) -> Array:
    """The first value of each block that counts, or any if there is none."""
    varying = [i for i in inner if where.shape[i] != 1]
    x = first(x, [i for i in inner if i not in varying])
    for i in varying:
        others = [j for j in varying if j > i]
        counts = where.any(others, keepdims=True) if others else where
        # A sum with one term: a look-up would not be partitioned.
        place = lax.broadcasted_iota(jnp.int32, counts.shape, i)
        chosen = place == jnp.argmax(counts, i, keepdims=True).astype(jnp.int32)
        where = (where & chosen).any(i, keepdims=True)
        x = jnp.where(chosen, x, jnp.zeros((), x.dtype)).sum(i, keepdims=True)
    return x
