"""The instructions of a compiled program, from its text."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.collectives import hlo

_LINE = re.compile(
    r"\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) "
    r"(?P<operation>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(
    r"(?P<item>[a-z]+\d*\w*)\[(?P<sizes>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?"
)
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"T\(([\d,]+)\)")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
        elements: how many values it has.
        bytes: what it takes in memory, with the padding of its tiles.
        space: the number of the memory that it is in; 0 is the main one.
    """

    elements: int
    bytes: int
    space: int


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
        name: of its result.
        type: of its result, as in the text.
        operation: such as "fusion".
        operands: names of instructions.
        index: which parameter it is, -1 if it is none.
        attributes: what follows the operands.
        is_root: whether its result is that of the computation.
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    index: int
    attributes: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result, in order."""
        return list(_arrays(self.type))

    @property
    def elements(self) -> int:
        """Values of its result, of all arrays together."""
        return sum(a.elements for a in self.arrays)


Body = dict[str, Instruction]
"""A computation: its instructions by name, in order."""


def body(lines: list[str]) -> Body:
    """Returns the computation that these lines are."""
    found = (_instruction(line) for line in lines)
    return {one.name: one for one in found if one is not None}


def _instruction(line: str) -> Instruction | None:
    found = _LINE.match(line)
    if found is None:
        return None
    inside, attributes = _until_closed(found["rest"])
    return Instruction(
        found["name"],
        found["type"],
        found["operation"],
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        int(inside) if inside.isdigit() else -1,
        attributes,
        bool(found["root"]),
    )


def _until_closed(text: str) -> tuple[str, str]:
    """Splits at the parenthesis that closes."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def _arrays(type_: str) -> Iterator[Array]:
    for found in _ARRAY.finditer(type_):
        sizes, layout = hlo.sizes(found["sizes"]), found["layout"] or ""
        space = _SPACE.search(layout)
        size = math.prod(_padded(sizes, layout)) * hlo.item_bytes(found["item"])
        yield Array(math.prod(sizes), size, int(space[1]) if space else 0)


def _padded(sizes: Sequence[int], layout: str) -> Sequence[int]:
    """The sizes of an array in memory, by a layout such as `3,0,2,1:T(8,128)(2,1)`."""
    tile, order = _TILE.search(layout), hlo.sizes(layout.partition(":")[0])
    if tile is None or len(order) != len(sizes):
        return sizes
    found = [sizes[axis] for axis in order]
    for place, whole in enumerate(reversed(hlo.sizes(tile[1]))):
        if place < len(found):
            found[place] = -(-found[place] // whole) * whole
    return found
