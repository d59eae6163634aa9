"""Tables for people."""

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, of any width."""
    table = Table(*header, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=1000, markup=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
