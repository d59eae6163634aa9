"""Turns Ctrl-C into a question that the training loop asks between rounds."""

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self


class Interrupt:
    """While entered, the first Ctrl-C sets `requested`, the second stops at once.

    Attributes:
        numbers: the signals that are listened to; only Ctrl-C stops at once.
        text: what is said when one comes.
        requested: whether one has come.
    """

    def __init__(
        self,
        *,
        numbers: Sequence[int] = (signal.SIGINT,),
        text: str = "stopping after this round; Ctrl-C again stops at once",
    ) -> None:
        self.numbers, self.text = numbers, text
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._handle) for n in self.numbers}
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self, step: int) -> bool:
        """Tells whether to stop after `step` steps."""
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        print(f"\n{self.text}", file=sys.stderr, flush=True)
