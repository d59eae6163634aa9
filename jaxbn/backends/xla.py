"""The reference implementation in lax: right everywhere, also for sharded operands.

The partitioner keeps every sharding it is given: but for blocks of rows, which no two
devices share, nothing is reshaped.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends.blocks import (
    cut,
    first,
    joined,
    moments_of_blocks,
    rows_on_gpu,
)
from jaxbn.backends.contract import Kernels, counted, is_explicit, rows, statistics_type
from jaxbn.backends.merging import merged


def along(vector: Array, like: Array, axes: tuple[int, ...]) -> Array:
    """Broadcasts a vector of the feature axes to the shape of `like`."""
    return lax.broadcast_in_dim(vector, like.shape, axes)


Totals = Callable[[Sequence[Array], Array, tuple[int, ...]], Sequence[Array]]


def _apart(summands, x, axes):
    """The sum of each over the rows of `x`."""
    return [summand.sum(rows(x, axes)) for summand in summands]


def _together(summands, x, axes):
    """The same where XLA partitions the program: one all-reduce for all of them.

    The partitioner gives every reduction over a sharded axis an all-reduce of its own.
    So the pixels of an image are summed first, and the few sums of its devices' images
    as one array. With fewer than three axes of rows there are no pixels, and the first
    axis may be time; there it stays at one for each sum, for XLA to combine.
    """
    outer, *others = rows(x, axes) or (0,)
    if len(others) < 2:
        return _apart(summands, x, axes)
    of_images = [summand.sum(others) for summand in summands]
    at = outer - sum(axis < outer for axis in others)
    return list(jnp.stack(of_images).sum(at + 1))


def _of_blocks(summands, x, axes, *, devices):
    """The same on a GPU, in blocks of rows whose sums are added in one kernel."""
    # Before a kernel of few threads XLA stores what takes them long, as an activation.
    # That is dear where memory is read for it, else so many short sums are.
    most, wanted = (rows_on_gpu(x, axes, devices, more) for more in (1, 4))
    blocks = joined(summands, axes, wanted, most) if devices == 1 else None
    arrays, outer, inner = blocks or cut(summands, axes, devices, wanted)
    # Of two axes the first may be time, and the devices share the second.
    if not inner or (devices > 1 and len(rows(x, axes)) == 2):
        return _apart(summands, x, axes)
    parts = jnp.stack([array.sum(inner, keepdims=True) for array in arrays])
    total = parts.sum([i + 1 for i in outer], keepdims=True)
    return list(total.squeeze([i + 1 for i in (*outer, *inner)]))


def _moments(x, where, *, axes, devices, platform):
    blocks, over, within = moments_of_blocks(x, where, axes, devices, platform)
    together, tpu = devices > 1, platform == "tpu"

    def total(terms):
        if tpu and together:
            # One array would be stored; of their all-reduces XLA:TPU makes one.
            return jnp.stack([term.sum(over, keepdims=True) for term in terms])
        return terms.sum([i + 1 for i in over], keepdims=True)

    shape = blocks.m2.shape
    number = math.prod(shape[i] for i in over)
    known = isinstance(blocks.count, float) and isinstance(number, int)
    # On other devices, another block would be the first.
    local = not (together or is_explicit(x)) and 0 not in shape
    found = merged(
        blocks,
        total,
        number if known else None,  # else one of them is symbolic, or masked
        # Where XLA partitions the program, the sum is an all-reduce of float32.
        encoded=together,
        near=functools.partial(first, axes=over) if local else None,
        has_float64=not tpu,
    )
    return tuple(values.squeeze((*over, *within)) for values in found[1:])


def _sums(
    a, x, center, multiplier, where, gate_slope=None, gate_offset=None,
    *, axes, gate=None, both=True, totals: Totals,
):  # fmt: skip
    wide = statistics_type(x)
    # An addition, for `expand` subtracts: XLA:CPU would store a shared distance.
    distance = x.astype(wide) + along(-center, x, axes)
    scaled = summed = a.astype(wide)
    if gate is not None:
        gated = _gated(summed, gate, distance, gate_slope, gate_offset, axes)
        scaled, summed = (gated, summed) if gate.part == "other" else (scaled, gated)
    summands = (summed, summed * distance)
    summands = [counted(s, where) for s in summands]
    # One array of sums is computed as a whole, also of those that nobody uses.
    groups = [summands] if both else [[summand] for summand in summands]
    total, moment = [t for group in groups for t in totals(group, x, axes)]
    if multiplier is None:
        return total, moment
    return (scaled * along(multiplier, x, axes)).astype(x.dtype), total, moment


def _expand(
    a, multiplier, slope, offset, x, center, where, gate_slope=None,
    gate_offset=None, *, axes, activation=None, gate=None,
):  # fmt: skip
    wide = statistics_type(x)
    distance = x.astype(wide) - along(center, x, axes)
    z = _line(distance, slope, offset, axes)
    other = None if a is None else a.astype(wide)
    if other is not None and multiplier is not None:
        other = other * along(multiplier, x, axes)
    if gate is not None:
        by = (gate, distance, gate_slope, gate_offset, axes)
        if gate.part == "affine":
            z = _gated(z, *by)
        elif other is not None:
            other = _gated(other, *by)
    z = counted(z, where)
    z = z if other is None else z + other
    return (z if activation is None else activation(z)).astype(x.dtype)


def _stored(a, multiplier, *others, gate=None, **options):
    """`_expand` for a GPU, which stores the result at the end of a residual block.

    Otherwise XLA keeps it in float32 for the next block, or computes it there again.
    """
    y = _expand(a, multiplier, *others, gate=gate, **options)
    is_last = a is not None and multiplier is None and gate is None
    return lax.optimization_barrier(y) if is_last else y


def _gate(dy, x, center, slope, offset, residual, *, axes, activation):
    if center is None:
        return jax.jvp(activation, (x,), (dy,))[1]
    wide = statistics_type(x)
    z = _line(x.astype(wide) - along(center, x, axes), slope, offset, axes)
    z = z if residual is None else z + residual.astype(wide)
    return jax.jvp(activation, (z,), (dy.astype(wide),))[1].astype(x.dtype)


def _gated(values, gate, distance, slope, offset, axes):
    z = _line(distance, slope, offset, axes)
    return jax.jvp(gate.activation, (z,), (values,))[1]


def _line(distance, slope, offset, axes):
    return distance * along(slope, distance, axes) + along(offset, distance, axes)


@functools.cache
def kernels(devices: int = 1, platform: str | None = None) -> Kernels:
    """The loops in a program that XLA partitions over so many devices.

    Those for a platform, "tpu" or "gpu", are faster there, and right everywhere.
    """
    moments = functools.partial(_moments, devices=devices, platform=platform)
    if platform == "gpu":
        totals = functools.partial(_of_blocks, devices=devices)
        sums = functools.partial(_sums, totals=totals)
        return Kernels(moments, sums, _stored, _gate, saved=lambda x: x)
    totals = _apart if devices == 1 else _together
    return Kernels(moments, functools.partial(_sums, totals=totals), _expand, _gate)


KERNELS = kernels()
