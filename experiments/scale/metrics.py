"""What a run writes while it trains; process 0 alone writes.

`metrics.jsonl` holds what the training computes and nothing else, so that a run that
was interrupted has the same lines as one that was not; `speed.jsonl` holds times.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments import files
from experiments.errors import MAKE_ROOM, UserError, writing


class Writer:
    """Appends rows to the files of a run. Use it with `with`.

    Attributes:
        out: directory of the run.
        step: the step that the run goes on from; rows of later ones are dropped.
        writes: whether this process writes at all.
        tensorboard: whether to write events for TensorBoard too.
    """

    def __init__(self, out: Path, *, step: int, writes: bool, tensorboard: bool):
        self.out, self.step, self.writes = out, step, writes
        self._files: dict[str, Any] = {}
        self._board: Any = None
        self._tensorboard = tensorboard and writes

    def __enter__(self) -> "Writer":
        if self._tensorboard:
            self._board = _board(self.out, self.step)
        if self.writes:
            for name in ("metrics", "speed"):
                path = self.out / f"{name}.jsonl"
                files.write_lines(path, rows_until(path, self.step))
                self._files[name] = path.open("a", buffering=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()

    def write(self, name: str, step: int, values: dict[str, float | int]) -> None:
        """Adds a row to `metrics` or `speed`; null stands for a value not finite."""
        if not self.writes:
            return
        row = {"step": step} | files.plain(values)
        with writing(self.out, advice=MAKE_ROOM):
            self._files[name].write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(f"{name}/{key}", value, step)


def rows_until(path: Path, step: int) -> list[dict]:
    """Returns the rows of a JSONL file up to `step`; none if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a kill in the middle of a line
            break
        if row["step"] > step:
            break
        rows.append(row)
    return rows


def _board(out: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise UserError(
            f"`--tensorboard` must find its package, but there is {error}. "
            'Install it: pip install "jaxbn[tensorboard]".'
        ) from error
    return SummaryWriter(
        str(out / "tensorboard"), purge_step=step + 1 if step else None
    )
