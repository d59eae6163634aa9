"""Compiles the programs that are wanted and keeps what is found after each of them."""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from experiments.bench.compilers import devices, programs
from experiments.bench.compilers.programs import Program
from experiments.common import environment, files
from experiments.common.errors import writing


class Store:
    """`compiled.json`: a record for each name, in the order in which they were made.

    A record is up to date while the compilers are the same and, if jaxbn is part of the
    program, its sources are. Others are kept until they are made again.
    """

    def __init__(self, out: Path):
        self._path = out / "compiled.json"
        self.records: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            content = json.loads(self._path.read_text())
            self.records = {r["name"]: r for r in content["programs"]}

    def current(self, name: str, program: Program) -> dict[str, Any] | None:
        """Returns a record if it need not be made again."""
        found = self.records.get(name)
        return found if found and found["made_by"] == made_by(program) else None

    def put(self, name: str, record: dict[str, Any], program: Program) -> None:
        """Adds or replaces a record, and writes the file."""
        self.records[name] = {"name": name, **record, "made_by": made_by(program)}
        with writing(self._path.parent):
            files.write_json(self._path, {"programs": list(self.records.values())})


def made_by(program: Program) -> dict[str, Any]:
    """Returns what a record depends on: versions, and the sources of jaxbn."""
    versions = _versions(devices.CHIPS[program.chip])
    sources = environment.sources("jaxbn") if program.uses_jaxbn else None
    return {**versions, "jaxbn sources": sources}


@functools.cache
def _versions(chip: devices.Chip) -> dict[str, str | None]:
    names = ("jax", "jaxlib", "flax", chip.compiler)
    return {name: environment.version(name) for name in names}


def compile_all(wanted: list[Program], store: Store, *, again: bool) -> None:
    """Compiles what the store does not have, with a line on stderr for each program."""
    began = time.monotonic()
    for number, program in enumerate(wanted, 1):
        if not again and store.current(program.name, program):
            continue
        record = {**described(program), **programs.measured(program)}
        store.put(program.name, record, program)
        said = record.get("error") or f"{record['seconds']} s"
        spent = time.monotonic() - began
        say(
            f"{number} of {len(wanted)}  {program.name}  {said}  ({spent:.0f} s so far)"
        )
        jax.clear_caches()


def described(program: Program) -> dict[str, Any]:
    """Returns what a record says of its program."""
    fields = dataclasses.asdict(program) | {"shape": list(program.shape)}
    return {"type" if name == "dtype" else name: fields[name] for name in fields}


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)
