"""A polite request to stop: SIGTERM of a scheduler, or Ctrl-C."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from experiments.common.interrupt import Interrupt


class Preemption(Interrupt):
    """While entered, SIGTERM and Ctrl-C ask the run to save and end.

    One process is asked by its own signal. Of several, the one that gets the signal
    tells the others through JAX's runtime, and all stop after the same step.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        # With several processes JAX's runtime listens to SIGTERM itself.
        ours = (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,)
        super().__init__(numbers=ours, text="saving, then stopping")

    def due(self, step: int) -> bool:
        """As of `Interrupt`; all processes must ask after every step."""
        if self._alone:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)
