"""The deadline of every phase of a run of several processes."""

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator

from experiments.common import processes
from experiments.common.errors import UserError, first_line
from experiments.common.supervise import LOST
from experiments.scale import config, connection


class Deadline:
    """Ends this process if a phase does not end in time. Use it with `with`.

    A phase is a step, saving a checkpoint, compiling: whatever waits for the other
    processes. A process that is alone has no deadline: nobody can keep it waiting. An
    error of what talks to the others means the same as silence: one is gone.

    Attributes:
        devices: how many processes there are, and how long they wait.
        advice: what to do, the end of the message.
    """

    def __init__(self, devices: config.Devices, *, advice: str):
        self.devices, self.advice = devices, advice
        self._over = threading.Event()
        self._start("the start", devices.phase_timeout)

    def __enter__(self) -> "Deadline":
        if not connection.alone(self.devices):
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._over.set()
        if connection.alone(self.devices) or error is None:
            return
        if isinstance(error, processes.AgreedError):  # the connection ended in order
            return
        # Ending in order would wait for the others, who may be waiting for this one.
        if isinstance(error, UserError):
            processes.leave(str(error), code=2)
        if processes.lost_another(error):
            said = first_line(error) if str(error).strip() else "no message"
            self._leave(f"{type(error).__name__} ({said})")
        traceback.print_exception(error)
        processes.leave(
            f"{self._name()} ended by a mistake of this program, see above", code=1
        )

    def beat(self, following: str = "a step") -> None:
        """Says that a step has ended, and another one follows."""
        self._start(following, self.devices.process_timeout)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Gives a phase that may take longer than a step its own time."""
        self._start(name, self.devices.phase_timeout)
        yield
        self.beat()

    def _start(self, phase: str, seconds: float) -> None:
        self._phase = phase, seconds, time.monotonic() + seconds

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            phase, seconds, end = self._phase
            if time.monotonic() > end:
                self._leave(f"{phase} did not end within {seconds} s")

    def _leave(self, reason: str) -> None:
        message = f"{self._name()} has lost another one: {reason}. {self.advice}"
        processes.leave(message, code=LOST)

    def _name(self) -> str:
        if self.devices.process_id is None:
            return "this process"
        return f"process {self.devices.process_id} of {self.devices.processes}"
