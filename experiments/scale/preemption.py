"""A polite request to stop: SIGTERM of a scheduler, or Ctrl-C."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """While entered, SIGTERM and Ctrl-C ask the run to save and end.

    One process is asked by its own signal. Of several, the one that gets the signal
    tells the others through JAX's runtime, and all stop after the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            # With several processes JAX's runtime listens to SIGTERM itself.
            numbers = [signal.SIGINT]
            numbers += [signal.SIGTERM] if jax.process_count() == 1 else []
            self._before = {n: signal.signal(n, self._handle) for n in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Tells whether to stop now; all processes must ask after every step."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        print("\nsaving, then stopping", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
