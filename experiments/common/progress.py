"""A progress bar with the time left on a terminal, a few plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINES = 10


class StepProgress:
    """Shows on stderr how many of `total` steps are taken. Use it with `with`.

    Attributes:
        total: steps of the whole run.
        begin: steps that an earlier session took.
        unit: what a step is called, in the plural.
        shown: whether to show anything; one of several processes does.
    """

    def __init__(
        self,
        total: int,
        *,
        begin: int = 0,
        unit: str = "steps",
        shown: bool = True,
    ):
        self.total, self.begin, self.unit = total, begin, unit
        self.shown = shown
        self._started = time.monotonic()
        self._lines = begin * _LINES // total
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal and shown:
            self._bar = _bar(console, unit)
            self._task: TaskID = self._bar.add_task("", total=total, completed=begin)

    def __enter__(self) -> "StepProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Announces a phase without steps."""
        if self._bar:
            self._bar.update(self._task, description=text)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def start_clock(self) -> None:
        """Starts the time from which the time left is estimated."""
        self._started = time.monotonic()
        if self._bar:
            self._bar.reset(self._task, completed=self.begin)

    def update(self, step: int, text: str) -> None:
        """Shows that `step` steps are taken, with `text` beside it."""
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
            return
        lines = step * _LINES // self.total
        if self.shown and lines > self._lines:
            self._lines = lines
            spent = time.monotonic() - self._started
            left = spent / max(step - self.begin, 1) * (self.total - step)
            print(
                f"{self.unit[:-1]} {step} of {self.total}  {text}  "
                f"about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def _bar(console: Console, unit: str) -> Progress:
    return Progress(
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
    )
