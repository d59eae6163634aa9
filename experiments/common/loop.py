"""The loop over steps of every program that trains: stopped, saved, continued."""

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import jax

from experiments.common import checkpoint, checksums, processes
from experiments.common.interrupt import Interrupt


class Training(Protocol):
    """A run that trains.

    Attributes:
        out: its directory.
        last: steps of the whole run.
    """

    @property
    def out(self) -> Path: ...

    @property
    def last(self) -> int: ...

    def steps(self) -> Generator[int]:
        """Takes what steps are left; yields their number where the run may stop."""
        ...

    def save(self) -> None:
        """Saves what has been reached; `SaveError` if that is impossible."""
        ...

    def finish(self) -> None:
        """Writes and prints the results."""
        ...


def complete(run: Training, interrupt: Interrupt, *, again: str) -> int:
    """Takes the steps that are left, or those until `interrupt` asks to stop.

    Returns:
        The exit code: 0 if the run is finished, 130 if it can be continued by `again`.
    """
    try:
        # Closed at the end, whatever ends it: a trace under way is written then.
        with contextlib.closing(run.steps()) as steps:
            for step in steps:
                if interrupt.due(step) and step < run.last:
                    run.save()
                    return _interrupted(step, again)
        run.finish()
        return 0
    except KeyboardInterrupt:
        if jax.process_count() > 1:
            raise
        return _interrupted(checksums.steps(run.out)[0], again)
    except checkpoint.SaveError as error:
        # Orbax's threads would complain, at length, of an orderly end.
        processes.leave(str(error), code=2)
        raise


def say(text: str) -> None:
    """Tells the user something, once for all processes."""
    if processes.is_first():
        print(text, file=sys.stderr)


def _interrupted(step: int, again: str) -> int:
    say(f"interrupted at step {step}; continue with: {again}")
    return 130
