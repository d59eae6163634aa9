"""Saves a run so that it goes on bit for bit, and never trusts a file when it does.

`checkpoints/STEP` is written by Orbax, all processes together, under another name until
it is whole; `checksums/STEP.json` follows it. What does not match its checksums is put
aside and the one before is used, so a kill at any time costs steps and nothing else.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments import files
from experiments.checkpoint import checksums, first_line, manager, quiet
from experiments.errors import MAKE_ROOM, UserError, unwritable
from experiments.scale import processes
from experiments.scale.step import TrainState

_KIND = "experiments train at scale, version 1"


class Saved(NamedTuple):
    """A checkpoint.

    Attributes:
        state: of the run, placed like the one it was asked for.
        data: position in the training data.
    """

    state: TrainState
    data: dict[str, Any]


class SaveError(UserError):
    """Nothing could be saved; what was saved before is whole."""


def save(
    out: Path, state: TrainState, *, data: dict, fingerprint: str, keep: int
) -> None:
    """Adds the checkpoint of this step and drops all but the newest `keep`.

    Called by all processes. If it fails the checkpoints before are as they were.

    Raises:
        SaveError: if `out` cannot be written.
    """
    step = int(state.step)
    if _usable(out, step):
        return
    about = {
        "kind": _KIND,
        "fingerprint": fingerprint,
        "data": data,
        "arrays": _arrays(state),
    }
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
    )
    try:
        with quiet(), manager(out, max_to_keep=keep) as saver:
            saver.save(step, args=items, force=True)
        if processes.is_first():
            _write_checksums(out, step)
    except jax.errors.JaxRuntimeError:
        raise  # another process was lost: `Deadline` says so
    except Exception as error:  # Orbax passes on what the file system raises, wrapped
        reason = unwritable(out, first_line(error), advice=MAKE_ROOM)
        raise SaveError(str(reason)) from error
    _wait("saved")


def restore_newest(out: Path, like: TrainState, *, fingerprint: str) -> Saved | None:
    """Returns the newest checkpoint that is whole, None if the run has none yet.

    Called by all processes. Those that are not whole are put into `damaged`, with a
    note on stderr.

    Args:
        out: directory of the run.
        like: shapes, dtypes and shardings of the state.
        fingerprint: of the options of the run.

    Raises:
        UserError: if there are checkpoints, but none is whole or of this run.
    """
    found = -1
    if processes.is_first():
        found = _newest_usable(out)
    found = processes.agree(found)
    if found < 0:
        return None
    return _read_own(out, found, like, fingerprint=fingerprint)


def read_newest(out: Path, like: TrainState, *, fingerprint: str) -> TrainState:
    """Returns the state of the newest whole checkpoint, and changes no file.

    Raises:
        UserError: if there is none, or it is not of this run.
    """
    for step in _steps(out):
        if _usable(out, step):
            return _read_own(out, step, like, fingerprint=fingerprint).state
    raise UserError(
        f"`--out` must hold a run with a whole checkpoint, got '{out}'. "
        "Train one first: python -m experiments train --config NAME."
    )


def _newest_usable(out: Path) -> int:
    steps = _steps(out)
    for step in steps:
        if _usable(out, step):
            return step
        _put_aside(out, step)
    if steps:
        raise UserError(
            f"A checkpoint in '{out}' must be whole, but none of {len(steps)} is; they "
            "are in 'damaged' now. Put a copy back, or start a new run."
        )
    return -1


def _usable(out: Path, step: int) -> bool:
    try:
        expected = json.loads((out / "checksums" / f"{step}.json").read_text())
        return expected == {"sha256": checksums(out / "checkpoints" / str(step))}
    except (OSError, ValueError):
        return False


def _put_aside(out: Path, step: int) -> None:
    target = out / "damaged" / str(step)
    print(
        f"note: the checkpoint of step {step} is not whole: moved to '{target}', the "
        "one before is used",
        file=sys.stderr,
    )
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    (out / "checkpoints" / str(step)).rename(target)


def _write_checksums(out: Path, step: int) -> None:
    folder = out / "checksums"
    folder.mkdir(exist_ok=True)
    sums = checksums(out / "checkpoints" / str(step))
    files.write_json(folder / f"{step}.json", {"sha256": sums})
    kept = {f"{step}.json" for step in _steps(out)}
    for path in folder.glob("*.json"):
        if path.name not in kept:
            path.unlink()


def _steps(out: Path) -> list[int]:
    folder = out / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _read_own(out: Path, step: int, like: TrainState, *, fingerprint: str) -> Saved:
    try:
        saved, about = _read(out, step, like)
    except Exception as error:
        raise UserError(
            f"The checkpoint of step {step} in '{out}' must hold this run, but: "
            f"{first_line(error)}. Put the right config.json back, or start a new run "
            "in another `--out`."
        ) from error
    if (about["kind"], about["fingerprint"]) != (_KIND, fingerprint):
        raise UserError(
            f"The checkpoint of step {step} in '{out}' must be of a run with the "
            "options in config.json, but is of another one. Put the right file back, "
            "or start a new run in another `--out`."
        )
    return saved


def _read(out: Path, step: int, like: TrainState) -> tuple[Saved, dict]:
    with quiet(), manager(out, read_only=True) as saver:
        about = saver.restore(
            step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
        )["about"]
        # Before Orbax finds out: it leaves threads behind when a shape does not fit.
        found, expected = about["arrays"], _arrays(like)
        if found != expected:
            name = min(
                k for k in {*found, *expected} if found.get(k) != expected.get(k)
            )
            raise ValueError(
                f"{name} is {found.get(name, 'not there')} where "
                f"{expected.get(name, 'nothing')} belongs"
            )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        values = saver.restore(step, args=items)["state"]
    state = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(values))
    return Saved(state, about["data"]), about


def _arrays(state: TrainState) -> dict[str, str]:
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(p): f"{v.dtype}{list(v.shape)}" for p, v in leaves}


def _wait(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
