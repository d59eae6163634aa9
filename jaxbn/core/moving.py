"""Operations that move values, and where the positions are in their results.

Positions are followed by `jaxbn.core.positions`, which says what axes are extra.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

Axes = tuple[bool, ...] | None
"""A flag per axis: whether it runs over positions. None for an array without values."""


class MixedError(Exception):
    """An operation that may mix positions; its name."""


def common(
    name: str, operands: Sequence[Axes], along: Sequence[int] = ()
) -> tuple[bool, ...]:
    """The axes of operands that have the values: the same, and extra at `along`."""
    axes = joined(name, operands)
    if axes is None or any(axes[i] for i in along):
        raise MixedError(name)
    return axes


def joined(name: str, operands: Sequence[Axes]) -> Axes:
    """The same, or None if no operand has the values."""
    found = {axes for axes in operands if axes is not None}
    if len(found) > 1:
        raise MixedError(name)
    return next(iter(found), None)


def check_whole(equation: JaxprEqn, axes: tuple[bool, ...], operands: list[Axes]):
    """Operands that have the values, and results, must have all positions."""
    given = [v for v, of in zip(equation.invars, operands, strict=True) if of]
    shapes = [shape_of(v) for v in (*given, *equation.outvars)]
    whole = all(len(shape) == len(axes) for shape in shapes) and all(
        len({shape[i] for shape in shapes}) == 1 for i, of in enumerate(axes) if of
    )
    if not whole:
        raise MixedError(equation.primitive.name)


def shape_of(variable: Any) -> tuple[Any, ...]:
    return variable.aval.shape


def _broadcast(equation, operands):
    found = [False] * len(shape_of(equation.outvars[0]))
    for axis, of in zip(
        equation.params["broadcast_dimensions"], operands[0], strict=True
    ):
        found[axis] = of
    return [tuple(found)]


def _reshape(equation, operands):
    """Positions stay in order if no extra axis is joined with another one."""
    name = equation.primitive.name
    supply = iter(shape_of(equation.outvars[0]))
    found: list[bool] = []
    for size, of in _runs(shape_of(equation.invars[0]), operands[0]):
        made = 1
        while made != size:
            n = next(supply, None)
            if n is None or (not of and n not in (1, size)):
                raise MixedError(name)
            made *= n
            found.append(of and n != 1)
    return [(*found, *(False for _ in supply))]


def _runs(shape: Sequence[Any], axes: Sequence[bool]) -> list[tuple[Any, bool]]:
    """The sizes of extra axes, and the products of neighbours that are positions."""
    found: list[tuple[Any, bool]] = []
    for size, of in zip(shape, axes, strict=True):
        if size == 1:
            continue
        if of and found and found[-1][1]:
            size *= found.pop()[0]
        found.append((size, of))
    return found


def _transpose(equation, operands):
    (axes,), order = operands, equation.params["permutation"]
    positions = [i for i in order if axes[i]]
    if positions != sorted(positions):
        raise MixedError("transpose")
    return [tuple(axes[i] for i in order)]


def _part(equation, operands):
    """A part along extra axes, or its replacement; the place must be known."""
    name = equation.primitive.name
    arrays = 2 if name == "dynamic_update_slice" else 1
    axes = common(name, operands[:arrays])
    if any(index is not None for index in operands[arrays:]):
        raise MixedError(name)
    check_whole(equation, axes, operands)
    return [axes]


def _stack(equation, operands):
    axes, at = common("stack", operands), equation.params["axis"]
    return [(*axes[:at], False, *axes[at:])]


def _unstack(equation, operands):
    at = equation.params["axis"]
    axes = common("unstack", operands, [at])
    return [(*axes[:at], *axes[at + 1 :])] * len(equation.outvars)


def _gather(equation, operands):
    """A table read at each position: the last axis of the indices lists its axes."""
    table, indices = operands
    if table is not None or indices[-1]:
        raise MixedError("gather")
    offsets, rest = equation.params["dimension_numbers"].offset_dims, iter(indices)
    shape = shape_of(equation.outvars[0])
    return [tuple(i not in offsets and next(rest) for i in range(len(shape)))]


RULES: dict[str, Callable[[Any, Any], Sequence[Axes]]] = {
    "broadcast_in_dim": _broadcast,
    "dynamic_slice": _part,
    "dynamic_update_slice": _part,
    "gather": _gather,
    "reshape": _reshape,
    "slice": _part,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}
