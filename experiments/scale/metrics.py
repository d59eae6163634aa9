"""The files that a run writes while it trains; process 0 alone writes.

`metrics.jsonl` holds what the training computes and nothing else, so that a run that
was interrupted has the same lines as one that was not; `speed.jsonl` holds times.
"""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from experiments.common import files, records
from experiments.common.errors import MAKE_ROOM, package, writing

_NAMES = ("metrics", "speed")
_Row = dict[str, int | float | None]


class Written(msgspec.Struct):
    """The contents of a file when a checkpoint was saved.

    Attributes:
        rows: how many.
        sha256: of all of them.
    """

    rows: int
    sha256: str


class Writer:
    """Appends rows to the files of a run. Use it with `with`.

    Attributes:
        out: directory of the run.
        step: the step that the run goes on from; rows of later ones are dropped.
        before: what the files held at that step, as `written` returned it. A file that
            does not is damaged: a copy is put aside and the rows that can be read stay.
        writes: whether this process writes at all.
        tensorboard: whether to write events for TensorBoard too.
    """

    def __init__(
        self,
        out: Path,
        *,
        step: int,
        before: Mapping[str, Written],
        writes: bool,
        tensorboard: bool,
    ):
        self.out, self.step, self.before, self.writes = out, step, before, writes
        self._files: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._sums: dict[str, Any] = {}
        self._board: Any = None
        self._tensorboard = tensorboard and writes

    def __enter__(self) -> "Writer":
        if self._tensorboard:
            self._board = _board(self.out, self.step)
        if self.writes:
            with writing(self.out, advice=MAKE_ROOM):
                for name in _NAMES:
                    self._open(name)
        return self

    def __exit__(self, kind, error, trace) -> None:
        # What ends the run must not be hidden by a buffer that cannot be written.
        hidden = contextlib.suppress(OSError) if error else contextlib.nullcontext()
        with (
            writing(self.out, advice=MAKE_ROOM),
            hidden,
            contextlib.ExitStack() as all_of_them,
        ):
            for file in (*self._files.values(), *filter(None, [self._board])):
                all_of_them.callback(file.close)

    def write(self, name: str, step: int, values: dict[str, float | int]) -> None:
        """Adds a row to `metrics` or `speed`; null stands for a value not finite."""
        if not self.writes:
            return
        line = _line({"step": step} | files.plain(values))
        with writing(self.out, advice=MAKE_ROOM):
            self._files[name].write(line)
            if self._board is not None:
                for key, value in values.items():
                    self._board.add_scalar(f"{name}/{key}", value, step)
        self._count(name, [line])

    def written(self) -> dict[str, Written]:
        """Returns what the files hold so far."""
        return {
            name: Written(self._rows[name], total.hexdigest())
            for name, total in self._sums.items()
        }

    def _open(self, name: str) -> None:
        path = self.out / f"{name}.jsonl"
        rows, damage = rows_until(path, self.step)
        self._rows[name], self._sums[name] = 0, hashlib.sha256()
        self._count(name, map(_line, rows))
        if self.before.get(name, self.written()[name]) != self.written()[name]:
            _put_aside(path, damage or "it is not what the run has written")
        files.write_lines(path, rows)
        self._files[name] = path.open("a", buffering=1)

    def _count(self, name: str, lines: Any) -> None:
        for line in lines:
            self._rows[name] += 1
            self._sums[name].update(line.encode())


def rows_until(path: Path, step: int) -> tuple[list[_Row], str]:
    """Returns the rows of a JSONL file up to `step`, and what is wrong with the next.

    None, and nothing, if there is no file.
    """
    if not path.is_file():
        return [], ""
    found, damage = records.lines(path, _Row)
    rows = []
    for number, row in enumerate(found, 1):
        at = row.get("step")
        if not isinstance(at, int):
            return rows, f"line {number}: it has no step"
        if at > step:
            return rows, ""
        rows.append(row)
    return rows, damage


def _line(row: _Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _put_aside(path: Path, damage: str) -> None:
    target = path.parent / "damaged" / path.name
    said = "and is gone"
    if path.is_file():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        said = f"a copy is in '{target}', the rows that can be read stay"
    print(f"note: '{path}' is damaged ({damage}): {said}", file=sys.stderr)


def _board(out: Path, step: int) -> Any:
    library = package("tensorboardX", what="`--tensorboard`", extra="tensorboard")
    purge = step + 1 if step else None
    return library.SummaryWriter(str(out / "tensorboard"), purge_step=purge)
