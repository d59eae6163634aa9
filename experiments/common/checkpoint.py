"""Saves a run so that it goes on bit for bit, and never trusts a file when it does.

`checkpoints/STEP` is written by Orbax, all processes together, under another name until
it is whole; `checksums/STEP.json` follows it. What does not match its checksums is put
aside and the one before is used, so a kill at any time costs steps and nothing else.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import msgspec
import orbax.checkpoint as ocp

from experiments.common import checksums, processes, records
from experiments.common.errors import MAKE_ROOM, UserError, first_line, unwritable

State = TypeVar("State")
Data = TypeVar("Data")

_KIND = "experiments train, version 2"
_START_ANEW = "start a new run in another `--out`."


class Identity(NamedTuple, Generic[Data]):
    """The identity of the run that the checkpoints of a directory belong to.

    Attributes:
        out: the directory.
        fingerprint: of the options.
        data: type of what is stored beside the arrays, a `msgspec.Struct`.
    """

    out: Path
    fingerprint: str
    data: type[Data]


class Saved(NamedTuple, Generic[State, Data]):
    """A checkpoint.

    Attributes:
        state: the arrays, placed like those it was asked for.
        data: what was stored beside them.
    """

    state: State
    data: Data


class SaveError(UserError):
    """Nothing could be saved; what was saved before is whole."""


class _About(msgspec.Struct):
    kind: str
    fingerprint: str
    data: dict[str, Any]
    arrays: dict[str, str]


def save(run: Identity[Data], step: int, state: Any, data: Data, *, keep: int) -> None:
    """Adds the checkpoint of this step and drops all but the newest `keep`.

    Called by all processes. If it fails the checkpoints before are as they were.

    Raises:
        SaveError: if `run.out` cannot be written.
    """
    if checksums.usable(run.out, step):
        return
    about = _About(_KIND, run.fingerprint, msgspec.to_builtins(data), _arrays(state))
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        about=ocp.args.JsonSave(msgspec.to_builtins(about)),
    )
    try:
        with _quiet(), _manager(run.out, max_to_keep=keep) as saver:
            saver.save(step, args=items, force=True)
        if processes.is_first():
            checksums.write(run.out, step)
    except Exception as error:  # Orbax passes on what the file system raises, wrapped
        if processes.lost_another(error):
            raise
        reason = unwritable(run.out, first_line(error), advice=MAKE_ROOM)
        raise SaveError(str(reason)) from error
    processes.wait_for_all("saved")


def restore_newest(run: Identity[Data], like: State) -> Saved[State, Data] | None:
    """Returns the newest checkpoint that is whole, None if the run has none yet.

    Called by all processes. Those that are not whole are put into `damaged`, with a
    note on stderr.

    Args:
        run: which run it must be of.
        like: shapes, dtypes and shardings of the state.

    Raises:
        UserError: if there are checkpoints, but none is whole or of this run.
    """
    found = -1
    with processes.all_or_none():
        if processes.is_first():
            found = checksums.newest_usable(run.out)
    found = processes.agree(found)
    return None if found < 0 else _read_own(run, found, like)


def read_newest(run: Identity[Data], like: State) -> Saved[State, Data]:
    """Returns the newest whole checkpoint, and changes no file.

    Raises:
        UserError: if there is none, or it is not of this run.
    """
    for step in checksums.steps(run.out):
        if checksums.usable(run.out, step):
            return _read_own(run, step, like)
    raise UserError(
        f"`--out` must hold a run with a whole checkpoint, got '{run.out}'. "
        "Train one first: python -m experiments train --config NAME."
    )


def _read_own(run: Identity[Data], step: int, like: State) -> Saved[State, Data]:
    try:
        return _read(run, step, like)
    except UserError:
        raise
    except Exception as error:
        if processes.lost_another(error):
            raise
        raise UserError(
            f"The checkpoint of step {step} in '{run.out}' must hold this run, but: "
            f"{first_line(error)}. Put the right config.json back, or {_START_ANEW}"
        ) from error


def _read(run: Identity[Data], step: int, like: State) -> Saved[State, Data]:
    with _quiet(), _manager(run.out, read_only=True) as saver:
        about, data = _described(run, step, saver)
        # Before Orbax finds out: it leaves threads behind when a shape does not fit.
        found, expected = about.arrays, _arrays(like)
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
    return Saved(state, data)


def _described(run: Identity[Data], step: int, saver: Any) -> tuple[_About, Data]:
    items = ocp.args.Composite(about=ocp.args.JsonRestore())
    name = f"The description of the checkpoint of step {step} in '{run.out}'"
    raw = saver.restore(step, args=items)["about"]
    about = records.converted(raw, _About, name=name)
    if (about.kind, about.fingerprint) != (_KIND, run.fingerprint):
        raise UserError(
            f"The checkpoint of step {step} in '{run.out}' must be of a run with the "
            "options in config.json, but is of another one. Put the right file back, "
            f"or {_START_ANEW}"
        )
    return about, records.converted(about.data, run.data, name=name)


def _arrays(state: Any) -> dict[str, str]:
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(p): f"{v.dtype}{list(v.shape)}" for p, v in leaves}


def _manager(out: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        (out / "checkpoints").resolve(),
        options=ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False, **options
        ),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
