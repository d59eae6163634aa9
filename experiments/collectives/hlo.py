"""Reads the collectives of a compiled program from its text.

    before combining   as the partitioner placed them, one for each sum
    after combining    as they run; XLA merges those that do not wait for each other

Both are compiled: `BEFORE_COMBINING` leaves out the pass that merges.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BEFORE_COMBINING = {"xla_disable_hlo_passes": "cpu-all-reduce-combiner"}
"""Options for `jax.stages.Lowered.compile`, on a CPU."""

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_INSTRUCTION = re.compile(
    rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\((?P<operands>.*?)\), "
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*)?\{$")
_SHAPE = re.compile(r"(?P<type>[a-z]+\d*\w*)\[(?P<sizes>[\d,]*)\]")
_BRANCHES = re.compile(
    r"branch_computations=\{(.*?)\}|(?:true|false)_computation=(%?[\w.\-]+)"
)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=(%?[\w.\-]+)")


class Collective(NamedTuple):
    """A collective of a program.

    Attributes:
        kind: one of `KINDS`.
        types: the type and sizes of each array, such as ("f32", (2, 64)); several
            where XLA combined several collectives.
        devices: how many devices take part in one group, 0 if the text does not say.
        source: where it comes from, by the names of functions and modules.
        in_branch: whether it is in a branch, which may never run.
    """

    kind: str
    types: tuple[tuple[str, tuple[int, ...]], ...]
    devices: int
    source: str
    in_branch: bool

    @property
    def bytes(self) -> int:
        """Bytes of its result on one device; for an all-reduce, of what it sums."""
        return sum(item_bytes(kind) * math.prod(sizes) for kind, sizes in self.types)

    @property
    def is_backward(self) -> bool:
        """Tells whether it belongs to a transposed, that is, a backward pass."""
        return "transpose(" in self.source


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of `jax.stages.Compiled.as_text()`, in order."""
    bodies = dict(computations(text))
    inside = _in_branches(bodies)
    return [
        _collective(found, line, in_branch=name in inside)
        for name, lines in bodies.items()
        for line in lines
        if (found := _INSTRUCTION.search(line))
    ]


def _collective(found: re.Match, line: str, *, in_branch: bool) -> Collective:
    source = re.search(r'op_name="(.*?)"', line)
    shapes = _SHAPE.finditer(found["type"])
    return Collective(
        found["kind"],
        tuple((s["type"], sizes(s["sizes"])) for s in shapes),
        _group_size(line),
        source[1] if source else "",
        in_branch,
    )


def sizes(text: str) -> tuple[int, ...]:
    """Returns the numbers of a list such as "8,128"."""
    return tuple(map(int, text.split(","))) if text else ()


def item_bytes(kind: str) -> int:
    """Returns the bytes of one value of a type, such as "bf16"."""
    bits = re.match(r"[a-z]+(\d*)", kind)
    return 1 if bits is None or not bits[1] else max(int(bits[1]) // 8, 1)


def _group_size(line: str) -> int:
    """From one of {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'b'}."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(sizes(listed[1]))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(counted[2])
    if named := re.search(r"replica_groups=mesh\[(.*?)\](?:<=\S+)? \{(.*?)\}", line):
        whole = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or whole[name]) for name, part in parts)
    return 0


def computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the lines of each computation of a program."""
    name, lines = "", []
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name, lines = found["name"], []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def branches(text: str) -> list[str]:
    """Returns the computations that the conditionals in a text choose from."""
    found = [several or single for several, single in _BRANCHES.findall(text)]
    return [name.strip().lstrip("%") for names in found for name in names.split(",")]


def _in_branches(bodies: dict[str, list[str]]) -> set[str]:
    """The computations that only branches lead to."""
    calls: dict[str, set[str]] = {}
    reached: set[str] = set()
    for name, lines in bodies.items():
        body = "\n".join(lines)
        calls[name] = {called.lstrip("%") for called in _CALLED.findall(body)}
        reached |= set(branches(body))
    pending = list(reached)
    while pending:
        new = calls.get(pending.pop(), set()) - reached
        reached |= new
        pending += new
    return reached
