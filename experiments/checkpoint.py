"""Saves a run so that it can go on bit for bit, and trusts no file when it does."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import files
from experiments.errors import UserError
from experiments.loop import TrainState
from experiments.run import Run

_KIND = "experiments train, version 1"
_ADVICE = "Put a copy of it back, or start a new run in another `--out`."


def save(out: Path, run: Run, *, fingerprint: str) -> None:
    """Adds the checkpoint of this step, then drops the one before.

    Args:
        out: directory of the run, which gets `checkpoints` and `checksums.json`.
        run: at a step that has no checkpoint yet.
        fingerprint: of the options of the run.
    """
    about = {
        "kind": _KIND,
        "fingerprint": fingerprint,
        "rows": run.rows,
        "train_seconds": run.train_seconds,
        "compile_seconds": run.compile_seconds,
    }
    items = ocp.args.Composite(
        states=ocp.args.StandardSave(jax.device_get(run.states)),
        about=ocp.args.JsonSave(about),
    )
    with quiet(), manager(out, max_to_keep=1) as saver:
        saver.save(run.step, args=items)
    sums = {"step": run.step, "sha256": checksums(_folder(out, run.step))}
    files.write_json(out / "checksums.json", sums)


def restore(out: Path, like: dict[str, TrainState], *, fingerprint: str) -> Run:
    """Returns the run of the latest checkpoint, after checking all of it.

    Nothing is written. A checkpoint that is missing, broken, or of another run is a
    `UserError`.

    Args:
        out: directory of the run.
        like: states with the expected names, shapes and dtypes.
        fingerprint: of the options of the run.
    """
    try:
        step = latest_step(out)
        _verify(out, step)
        about, states = _read(out, step, like)
    except Exception as error:  # whatever a damaged file makes orbax raise
        raise UserError(
            f"The checkpoint in '{out}' must be readable, but is broken: "
            f"{first_line(error)}. {_ADVICE}"
        ) from error
    if (about["kind"], about["fingerprint"]) != (_KIND, fingerprint):
        raise UserError(
            f"The checkpoint in '{out}' must be of a run with the options in "
            f"config.json, but is of another one. {_ADVICE}"
        )
    seconds = about["train_seconds"], about["compile_seconds"]
    return Run(states, about["rows"], *seconds)


def latest_step(out: Path) -> int:
    """Returns the step of the latest checkpoint."""
    with quiet(), manager(out, read_only=True) as saver:
        step = saver.latest_step()
    if step is None:
        raise ValueError("no step was saved")
    return step


def _verify(out: Path, step: int) -> None:
    # Before orbax reads: it reads in threads, which complain on their own.
    sums = json.loads((out / "checksums.json").read_text())
    if sums["step"] < step:  # stopped after saving, before the checksums were written
        return
    found = checksums(_folder(out, step))
    if sums != {"step": step, "sha256": found}:
        wrong = {name for name, _ in sums["sha256"].items() ^ found.items()}
        raise ValueError(f"{min(wrong, default=step)} does not match checksums.json")


def _folder(out: Path, step: int) -> Path:
    return out / "checkpoints" / str(step)


def checksums(top: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `top`, by its path from there."""
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def _read(
    out: Path, step: int, like: dict[str, TrainState]
) -> tuple[dict, dict[str, TrainState]]:
    expected = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    items = ocp.args.Composite(
        states=ocp.args.StandardRestore(expected), about=ocp.args.JsonRestore()
    )
    with quiet(), manager(out, read_only=True) as saver:
        found = saver.restore(step, args=items)
    return found["about"], jax.tree.map(_as_expected, expected, found["states"])


def _as_expected(expected: np.ndarray, found: Any) -> np.ndarray:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"an array has shape {found.shape} and dtype {found.dtype} where "
            f"{expected.shape} and {expected.dtype} belong"
        )
    return np.asarray(found)


def manager(out: Path, **options: Any) -> ocp.CheckpointManager:
    """Returns what reads and writes the checkpoints of a run."""
    return ocp.CheckpointManager(
        (out / "checkpoints").resolve(),
        options=ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False, **options
        ),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax from saying on stderr what is no concern of the user."""
    # Orbax warns that a directory opened for reading is only read, and tells of errors
    # that it raises as well.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: Exception) -> str:
    """Returns the message of `error`, short and without a period."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
