"""The moments of blocks of rows, each about a value of its own.

A sum of n squares about a pivot p loses about eps * (1 + (mean - p)^2 / variance) of
the variance. If p is one of the values, (mean - p)^2 is one of the n terms whose
average is the variance, so the loss is at most eps * (1 + n), wherever the mean is.
Hence blocks of at most a few thousand rows, each with a pivot from its own data: one
pass over memory, and nothing depends on earlier batches.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.contract import (
    counted,
    divisor,
    is_explicit,
    number_of,
    rows,
    split_axes,
    statistics_type,
)
from jaxbn.backends.merging import LARGE, Centered

# Rows of a block: fewer cost memory traffic for its sums, more cost digits.
_FEW, _MOST = 256, 4096
# On a TPU the sums stay on the chip, and a reshape of `x` is a copy there.
_FEW_ON_TPU = 32
# XLA:GPU sums columns with a thread block for 128 bytes of each block of rows. With
# about 512 of them an H200 is fastest; with half as many XLA stores what is summed.
_THREAD_BLOCKS = 512
_BYTES_OF_A_THREAD_BLOCK, _LEAST_BYTES, _FEW_ON_GPU = 128, 256, 128
# So many rows the threads of a block add at a time.
_STEP = 32
# So many bytes stay in the cache of an A100, H100 or H200 for the next kernel.
_CACHED = 2**25


class Blocks(NamedTuple):
    """Rows cut into blocks.

    Attributes:
        arrays: with one axis cut in two, if need be.
        outer: the axes that list the blocks.
        inner: the axes within a block.
    """

    arrays: list[Array]
    outer: tuple[int, ...]
    inner: tuple[int, ...]


def moments_of_blocks(
    x: Array,
    where: Array | None,
    axes: tuple[int, ...],
    devices: int,
    platform: str | None,
):
    """The moments of the blocks of `x`, the axes that list them and those within.

    All axes are kept, those within a block with a size of one. No block has rows of two
    devices, if the first axis is split over `devices`, or others as the types tell.
    """
    given = [x, *([] if where is None else [where])]
    wanted = rows_on_gpu(x, axes, devices) if platform == "gpu" else None
    enough = _FEW_ON_TPU if platform == "tpu" else _FEW
    arrays, outer, inner = cut(given, axes, devices, wanted, enough)
    x, where = arrays[0], None if where is None else arrays[1]
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
    # Both sums are of one array: XLA:GPU then computes them in one kernel.
    distance = x.astype(wide) - lax.broadcast_in_dim(pivot, x.shape, every)
    distance = counted(distance, counts)
    if unit is not None:
        distance = distance * lax.broadcast_in_dim(1 / unit, x.shape, every)
    weighted = counted(distance, where)
    total = weighted.sum(inner, keepdims=True)
    squares = (weighted * distance).sum(inner, keepdims=True)
    count = number_of(x, inner)
    if where is not None:
        others = number_of(x, [i for i in inner if where.shape[i] == 1])
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


def cut(
    arrays: list[Array],
    axes: tuple[int, ...],
    devices: int,
    wanted: int | None,
    enough: int = _FEW,
) -> Blocks:
    """Cuts the rows of arrays into blocks.

    Args:
        arrays: with the sizes of the first one, or one.
        axes: the feature axes.
        devices: among which XLA may split the first axis of rows.
        wanted: about so many rows of a block; None for as few cuts as are right.
        enough: a block of so many rows needs no others.
    """
    x = arrays[0]
    every, split = rows(x, axes), split_axes(x)
    outer = tuple(i for i in every if i == every[0] or i in split)
    inner = tuple(i for i in every if i not in outer)
    if not outer or not _is_known(x):
        return Blocks(arrays, outer, inner)

    def size():
        return math.prod(x.shape[i] for i in inner)

    few, most = wanted or _FEW, wanted or _MOST
    while len(inner) > 1 and size() > most and size() >= few * x.shape[inner[0]]:
        outer, inner = (*outer, inner[0]), inner[1:]
    too_many = wanted is not None and size() > most
    # A reshape of what is split is refused where types tell it.
    if is_explicit(x) or (inner and size() >= (wanted or enough) and not too_many):
        return Blocks(arrays, outer, inner)
    # Else some of the first axis joins the few rows behind it.
    axis, *others = list(inner) if too_many else [outer[0], *inner]
    behind = max(math.prod(x.shape[i] for i in others), 1)
    uncut = x.shape[axis] if too_many else 1
    each = _part(x.shape[axis], few // behind, _MOST // behind, devices) or uncut
    if inner and each == uncut:
        return Blocks(arrays, outer, inner)
    outer = (*outer, axis) if too_many else (axis,)
    inner = (axis + 1, *(i + 1 for i in others))
    return Blocks(_split(arrays, axis, each), outer, inner)


def joined(
    arrays: list[Array], axes: tuple[int, ...], wanted: int | None, most: int | None
) -> Blocks | None:
    """Cuts the rows of one device as if they were a single axis, if that is possible.

    The loops of XLA:GPU then need fewer registers than over the pixels of images, where
    some kernels keep them in memory, and no row is left over.

    Args:
        arrays: of one shape.
        axes: the feature axes.
        wanted: about so many rows of a block.
        most: at most so many rows of a block.
    """
    x = arrays[0]
    every = rows(x, axes)
    apart = bool(every) and every[-1] - every[0] >= len(every)
    if wanted is None or most is None or not every or apart or is_explicit(x):
        return None
    start, end = every[0], every[-1] + 1
    n = math.prod(x.shape[start:end])
    steps = min(most, 3 * wanted // 2) // _STEP
    each = _STEP * (_part(n // _STEP, wanted / _STEP, steps, devices=1) or 0)
    if n % _STEP or 3 * each < 2 * wanted:
        return None
    shape = (*x.shape[:start], n // each, each, *x.shape[end:])
    return Blocks([a.reshape(shape) for a in arrays], (start,), (start + 1,))


def rows_on_gpu(
    x: Array, axes: tuple[int, ...], devices: int, more: int = 1
) -> int | None:
    """The rows of a block that keep a GPU busy; None if features are not last.

    With `more`, an `x` that no cache holds gets so many times as many thread blocks.
    """
    if x.ndim - 1 not in axes or not _is_known(x):
        return None
    each = math.prod(x.shape[i] for i in axes) * x.dtype.itemsize
    number = math.prod(x.shape[i] for i in rows(x, axes)) // devices
    least = max(each, _LEAST_BYTES) / _BYTES_OF_A_THREAD_BLOCK
    thread_blocks = _THREAD_BLOCKS * (more if each * number > _CACHED else 1)
    return min(max(int(number * least / thread_blocks), _FEW_ON_GPU), _MOST)


def _is_known(x: Array) -> bool:
    """Tells whether no size is symbolic."""
    return all(isinstance(n, int) for n in x.shape)


def _part(n: int, wanted: float, most: int, devices: int) -> int | None:
    """The divisor of `n` nearest to `wanted` of which each device has some, if any."""
    fitting = [
        each
        for each in range(1, min(n, most) + 1)
        if n % each == 0 and n // each % devices == 0
    ]
    wanted = max(wanted, 1)
    return min(fitting, key=lambda d: max(d / wanted, wanted / d), default=None)


def _split(arrays: list[Array], axis: int, each: int) -> list[Array]:
    """Cuts an axis into parts of `each`, which get an axis behind it."""

    def one(array):
        n = array.shape[axis]
        parts = (n // each, each) if n != 1 else (1, 1)
        return array.reshape(*array.shape[:axis], *parts, *array.shape[axis + 1 :])

    return [one(array) for array in arrays]


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
