"""The implementation in C++ for the CPU, called from inside XLA programs.

What the kernels cannot do goes to the reference implementation: other types and
activations, masks that tell features apart, features in three or more places.
"""

import ctypes
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxbn.backends
from jaxbn.backends import xla
from jaxbn.backends.contract import Gate, Kernels, statistics_type

PLATFORM = "cpu"
_LIBRARY = "_native.so"
_TYPES = ("float16", "bfloat16", "float32", "float64")
# Activations that the kernels know, with their upper bound.
_BOUNDS = {None: 0.0, jax.nn.relu: math.nan, jax.nn.relu6: 6.0}
_EXPAND, _GATE, _BACK = 0, 1, 2  # enum Form
# Bytes of the largest operand below which a call costs more than it saves, by the bytes
# of an element: XLA is slower with 16 bits.
_PAYS = {2: 1 << 15, 4: 1 << 17, 8: 1 << 17}


@functools.cache
def missing() -> str | None:
    """Returns why the library cannot be used, or None; the first call loads it."""
    # In an editable installation the library is beside a second copy of the package.
    places = [Path(place) / _LIBRARY for place in jaxbn.backends.__path__]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return (
            "the library was not built, because the installation found no C++ compiler "
            "or has no kernels for this platform"
        )
    try:
        library = ctypes.CDLL(str(found))
        library.jaxbn_isa.restype = ctypes.c_char_p
        if not library.jaxbn_isa():
            return "JAXBN_NATIVE_ISA names no instruction set of this processor"
        for name in ("jaxbn_moments", "jaxbn_sums", "jaxbn_map"):
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, handler, platform=PLATFORM)
    except (OSError, AttributeError) as error:
        return f"the library cannot be loaded ({error})"
    return None


class _Operands(NamedTuple):
    """All operands of all kernels, in the order of enum Slot."""

    x: Array
    a: Array | None = None
    residual: Array | None = None
    center: Array | None = None
    slope: Array | None = None
    offset: Array | None = None
    multiplier: Array | None = None
    gate_slope: Array | None = None
    gate_offset: Array | None = None
    where: Array | None = None


def _sizes(shape: Sequence[int], where, axes: tuple[int, ...]) -> list[int] | None:
    """[batch, outer, channels, inner, batch of where, repeat of where], if it is so."""
    masks = (1,) * len(shape) if where is None else where.shape
    dims = enumerate(zip(shape, masks, strict=True))
    groups = [
        (feature, [pair for _, pair in members])
        for feature, members in itertools.groupby(
            (dim for dim in dims if dim[1][0] != 1), key=lambda dim: dim[0] in axes
        )
    ]
    # Features, rows, features, rows; the first group only if two others follow.
    pattern = [feature for feature, _ in groups]
    places = ["batch"] if pattern[:1] == [True] and len(pattern) > 2 else []
    for place, feature in (("outer", False), ("channels", True), ("inner", False)):
        if pattern[len(places) : len(places) + 1] == [feature]:
            places.append(place)
    if len(places) != len(pattern):
        return None
    pairs = zip(places, groups, strict=True)
    at = {place: members for place, (_, members) in pairs}
    size = {place: math.prod(n for n, _ in members) for place, members in at.items()}
    varies = {place for place, members in at.items() if any(w != 1 for _, w in members)}
    if varies - {"batch", "outer"}:
        return None
    if "batch" in varies and any(w != n for n, w in at["batch"]):
        return None
    outer = at.get("outer", [])
    shared = [n for n, w in outer if w == 1]
    if any(w == 1 for _, w in outer[: len(outer) - len(shared)]):
        return None
    return [
        *(size.get(place, 1) for place in ("batch", "outer", "channels", "inner")),
        size["batch"] if "batch" in varies else 1,
        math.prod(shared),
    ]


def _suits(operands: _Operands, sizes, activation=None) -> bool:
    """Tells whether the kernels can run this."""
    full, vectors = operands[:3], operands[3:-1]
    return (
        sizes is not None
        and operands.x.size > 0
        and operands.x.dtype.name in _TYPES
        and all(o is None or o.dtype == operands.x.dtype for o in full)
        and all(o is None or o.dtype == statistics_type(operands.x) for o in vectors)
        and (operands.where is None or operands.where.dtype == jnp.bool_)
        and activation in _BOUNDS
    )


def _call(target, results, operands: _Operands, sizes, activation=None, **attributes):
    return jax.ffi.ffi_call(target, results)(
        *(operand for operand in operands if operand is not None),
        present=np.int64(sum(1 << i for i, o in enumerate(operands) if o is not None)),
        sizes=np.array(sizes, np.int64),
        activation=np.int64(activation is not None),
        high=np.float64(_BOUNDS[activation]),
        **attributes,
    )


def _vectors(count: int, x: Array, axes: tuple[int, ...]):
    shape = tuple(x.shape[axis] for axis in axes)
    return (jax.ShapeDtypeStruct(shape, statistics_type(x)),) * count


def _moments(x, where, *, axes):
    operands, sizes = _Operands(x, where=where), _sizes(x.shape, where, axes)
    # In float64 the loops, which merge in it, have no digits to spare.
    if not _suits(operands, sizes) or x.dtype == jnp.float64:
        return xla.KERNELS.moments(x, where, axes=axes)
    return tuple(_call("jaxbn_moments", _vectors(4, x, axes), operands, sizes))


def _sums(a, x, center, multiplier, where, *line, axes, gate=None, both=True):
    inside = _of(gate, "affine")
    vectors = line if inside else (None, None)
    operands = _Operands(x, a, None, center, None, None, None, *vectors, where=where)
    sizes = _sizes(x.shape, where, axes)
    if not _suits(operands, sizes, inside):
        given = (a, x, center, multiplier, where, *line)
        return xla.KERNELS.sums(*given, axes=axes, gate=gate, both=both)
    sums = _call("jaxbn_sums", _vectors(2, x, axes), operands, sizes, inside)
    if multiplier is None:
        return tuple(sums)
    # Forward mode only: XLA fuses this with what the tangent goes into.
    given = (a, x, center, multiplier, where, *line)
    return (xla.KERNELS.sums(*given, axes=axes, gate=gate)[0], *sums)


def _expand(
    a, multiplier, slope, offset, x, center, where, *line, axes, activation=None,
    gate=None,
):  # fmt: skip
    given = (a, multiplier, slope, offset, x, center, where, *line)
    outside = _of(gate, "other") if a is not None else None
    if a is not None and multiplier is None:
        multiplier = jnp.ones_like(slope)
    vectors = (center, slope, offset, multiplier if a is not None else None)
    gates = line if outside else (None, None)
    operands = _Operands(x, a, None, *vectors, *gates, where=where)
    sizes = _sizes(x.shape, where, axes)
    if not _suits(operands, sizes, outside or activation) or _of(gate, "affine"):
        options = {"axes": axes, "activation": activation, "gate": gate}
        return xla.KERNELS.expand(*given, **options)
    form = np.int64(_BACK if outside else _EXPAND)
    by = outside or activation
    return _call("jaxbn_map", _like(x), operands, sizes, by, form=form)


def _of(gate: Gate | None, part: str):
    """The activation of a gate of this part."""
    return gate.activation if gate is not None and gate.part == part else None


def _gate(dy, x, center, slope, offset, residual, *, axes, activation):
    operands = _Operands(x, dy, residual, center, gate_slope=slope, gate_offset=offset)
    sizes = _sizes(x.shape, None, axes)
    if center is None or not _suits(operands, sizes, activation):
        given = (dy, x, center, slope, offset, residual)
        return xla.KERNELS.gate(*given, axes=axes, activation=activation)
    form = np.int64(_GATE)
    return _call("jaxbn_map", _like(x), operands, sizes, activation, form=form)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


KERNELS = Kernels(_moments, _sums, _expand, _gate)


def _where_it_pays(name: str):
    kernel, plain = getattr(KERNELS, name), getattr(xla.KERNELS, name)

    def choice(*operands, **params):
        largest = max((o for o in operands if o is not None), key=lambda o: o.size)
        bytes_ = largest.dtype.itemsize
        pays = largest.size * bytes_ >= _PAYS.get(bytes_, 0)
        if name == "expand":
            # A map without an activation has neighbours that XLA joins it with: a ReLU,
            # the sum with a shortcut, the float32 copies that convolutions take. And at
            # a plain map of 32 bits XLA is as fast.
            inside = params.get("activation") or params.get("gate")
            pays = pays and bool(inside) and (bytes_ < 4 or operands[0] is not None)
        return (kernel if pays else plain)(*operands, **params)

    return choice


FASTEST = Kernels(*map(_where_it_pays, Kernels._fields))
