"""Reads from the text of a compiled program what it moves and what it runs.

    bytes     what its kernels and copies read and write in the main memory of one
              device: operands and results as they lie there, so that the tiles of a
              TPU count whole: 64 channels may take the place of 128
    on_chip   the same in the other memories of a TPU, of which some are as large as an
              activation

An operand of which a kernel uses a part counts with that part: slices, also after
steps that keep the place of each value. An update in place counts with the update.
Both branches of a conditional count, and the body of a loop as often as it runs, where
the text says so, else once. An operation of two instructions (start, done) counts
once: its operands where it starts, its result where it is done.
"""

import operator
import re
from collections.abc import Iterable
from typing import NamedTuple

from experiments.bench.compilers.text import Array, Body, Instruction, body
from experiments.collectives import hlo

_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota",
    "partition-id", "replica-id", "optimization-barrier", "after-all", "add-dependency",
}  # fmt: skip
# Targets that only tell the compiler how buffers lie.
_FREE_TARGETS = {"ConcatBitcast", "AllocateBuffer", "Sharding", "SPMDFullToShardShape"}
# Done by a unit for copies, beside the kernels.
_MOVES = {"copy", "slice", "dynamic-slice", "dynamic-update-slice"}
_SLICES = {"slice", "dynamic-slice", "gather"}
# A part of the result needs the same part of the operand.
_PASSING = {"reduce", "get-tuple-element", "tuple", "bitcast", "bitcast-convert"}

_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_LOOP = re.compile(r"\b(?:body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Counts(NamedTuple):
    """The work of a program in one run on one device.

    Attributes:
        bytes, on_chip: see above.
        kernels: what is launched, collectives included.
        moves: copies that a unit of their own makes.
        conditionals, loops: how many there are; outer ones count once.
    """

    bytes: int = 0
    on_chip: int = 0
    kernels: int = 0
    moves: int = 0
    conditionals: int = 0
    loops: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Returns what both do."""
        return Counts(*map(operator.add, self, other))

    def times(self, runs: int) -> "Counts":
        """Returns what `runs` runs do; branches and loops stay as many."""
        moved = Counts(*(runs * number for number in self))
        return moved._replace(conditionals=self.conditionals, loops=self.loops)


def counts(text: str, *, on_chip: frozenset[int] = frozenset()) -> Counts:
    """Returns the counts of `jax.stages.Compiled.as_text()`.

    Args:
        text: the program.
        on_chip: memory spaces that are not the main memory.
    """
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    if entry is None:
        raise ValueError("`text` must be a program with an ENTRY, got none.")
    bodies = {name: body(lines) for name, lines in hlo.computations(text)}
    return _Reader(bodies, on_chip).of(entry[1])


class _Reader:
    def __init__(self, bodies: dict[str, Body], on_chip: frozenset[int]):
        self._bodies, self._on_chip = bodies, on_chip

    def of(self, name: str) -> Counts:
        """Adds up the work of a computation in one run."""
        body, total = self._bodies[name], Counts()
        for one in body.values():
            total = total.plus(self._one(one, body))
        return total

    def _one(self, one: Instruction, body: Body) -> Counts:
        operation, text = one.operation, one.attributes
        if operation in _FREE or _is_free_call(one):
            return Counts()
        if operation == "conditional":
            return self._all(hlo.branches(text)).plus(Counts(conditionals=1))
        if operation == "while":
            trips = _TRIPS.search(text)
            inside = self._all(_LOOP.findall(text)).times(int(trips[1]) if trips else 1)
            return inside.plus(Counts(loops=1))
        if operation == "call":
            return self._all(_CALLED.findall(text))
        return self._moved(one, body)

    def _all(self, names: Iterable[str]) -> Counts:
        total = Counts()
        for name in names:
            total = total.plus(self.of(name))
        return total

    def _moved(self, one: Instruction, body: Body) -> Counts:
        kind, _, phase = one.operation.rpartition("-")
        if phase in ("done", "update"):
            return self._sized(self._written(one, body) if phase == "done" else [])
        if phase != "start":
            kind = one.operation
        reads = self._sized(self._reads(one, body))
        if phase == "start":
            kind = self._wrapped(one) if kind == "async" else kind
        else:
            reads = reads.plus(self._sized(self._written(one, body)))
        is_move = phase == "start" and kind in _MOVES
        return reads.plus(Counts(moves=1) if is_move else Counts(kernels=1))

    def _wrapped(self, one: Instruction) -> str:
        """The operation that an `async-start` starts."""
        called = _CALLED.search(one.attributes)
        body = self._bodies.get(called[1], {}) if called else {}
        return next((i.operation for i in body.values() if i.is_root), "")

    def _sized(self, parts: list[tuple[float, Array]]) -> Counts:
        main = sum(s * a.bytes for s, a in parts if a.space not in self._on_chip)
        other = sum(s * a.bytes for s, a in parts if a.space in self._on_chip)
        return Counts(bytes=round(main), on_chip=round(other))

    def _reads(self, one: Instruction, body: Body) -> list[tuple[float, Array]]:
        """The operands, each with the share of it that is read."""
        shares = self._shares(one, body, 1.0)
        return [
            (share, array)
            for name, share in zip(one.operands, shares, strict=True)
            if name in body
            for array in body[name].arrays
        ]

    def _shares(self, one: Instruction, body: Body, need: float) -> list[float]:
        """Shares of the operands that a share `need` of the result needs."""
        inner = self._inner(one)
        if inner is not None:
            needed = self._parameters(inner)
            return [needed.get(place, 0.0) for place in range(len(one.operands))]
        kind = one.operation.removesuffix("-start")
        if kind == "dynamic-update-slice":
            replaced = body.get(one.operands[0])
            kept = 0.0 if _is_in_place(replaced, body) else need
            return [kept, *(1.0 for _ in one.operands[1:])]
        # Of what is started the type has operands and result: the largest slice.
        made = one.elements if kind == one.operation else _started(one)
        return [
            _share(kind, need, made, body[name].elements) if name in body else 0.0
            for name in one.operands
        ]

    def _inner(self, one: Instruction) -> Body | None:
        if one.operation not in ("fusion", "async-start"):
            return None
        called = _CALLED.search(one.attributes)
        return self._bodies.get(called[1]) if called else None

    def _parameters(self, body: Body) -> dict[int, float]:
        """The share of each parameter that a fusion reads, by their numbers."""
        need = {one.name: 1.0 for one in body.values() if one.is_root}
        found = {}
        for one in reversed(body.values()):
            share = need.get(one.name, 0.0)
            if one.operation == "parameter":
                found[one.index] = share
            elif share:
                shares = self._shares(one, body, share)
                for name, part in zip(one.operands, shares, strict=True):
                    need[name] = min(1.0, need.get(name, 0.0) + part)
        return found

    def _written(self, one: Instruction, body: Body) -> list[tuple[float, Array]]:
        """The arrays of the result, each with the share of it that is written."""
        inner = self._inner(one)
        if inner is not None:
            root = next(i for i in inner.values() if i.is_root)
            parts = [root]
            if root.operation == "tuple":
                parts = [inner[name] for name in root.operands]
            if len(parts) == len(one.arrays):
                shares = [_written_share(part, inner) for part in parts]
                return list(zip(shares, one.arrays, strict=True))
        return [(_written_share(one, body), array) for array in one.arrays]


def _share(kind: str, need: float, made: int, given: int) -> float:
    """The share of an operand of `given` values, for a result of `made`."""
    if kind in _PASSING or not given:
        return need
    if kind in _SLICES or made >= given:
        return min(1.0, need * made / given)
    return 1.0


def _started(one: Instruction) -> int:
    """Counts the values of an operation whose type is ((operands), result, ...)."""
    kind = one.operation.removesuffix("-start")
    arrays = one.arrays
    if kind == "copy":
        return arrays[0].elements
    sizes = [a.elements for a in arrays]
    return sizes[len(one.operands)] if kind in _SLICES else max(sizes, default=0)


def _written_share(one: Instruction, body: Body) -> float:
    """The share of a result that is written: that of the updates, if in place."""
    updates, whole = 0, one.elements
    while one.operation in ("bitcast", "dynamic-update-slice"):
        if one.operation == "dynamic-update-slice":
            update = body.get(one.operands[1])
            updates += update.elements if update else 0
        inner = body.get(one.operands[0])
        if inner is None:
            return 1.0
        one = inner
    in_place = updates and one.operation in ("parameter", "get-tuple-element")
    return min(1.0, updates / whole) if in_place and whole else 1.0


def _is_in_place(one: Instruction | None, body: Body) -> bool:
    """Tells whether an update of this changes an array that exists, and no new one."""
    while one is not None and one.operation in ("bitcast", "dynamic-update-slice"):
        one = body.get(one.operands[0])
    return one is not None and one.operation in ("parameter", "get-tuple-element")


def _is_free_call(one: Instruction) -> bool:
    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    return target is not None and target[1] in _FREE_TARGETS
