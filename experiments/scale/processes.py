"""Several processes: how they find each other, and what happens when one is lost.

JAX's own runtime connects them and ends all when one is silent for too long, wherever
they are. This module adds a deadline for every step, which is sooner and also notices a
process that is alive and stuck, and a last word for a process that is ended from below.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from experiments.errors import UserError
from experiments.scale import config

LOST = 3  # exit code of a process that has lost another one

_FOR_ALL_TO_COME = 120

# Its input ends when the process that started it does, however that happens.
_SPEAK_AT_THE_END = "import sys; sys.stdin.read(); print(sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def started(devices: config.Devices) -> Iterator[None]:
    """Connects the processes; must be entered before JAX is used for anything else.

    With `coordinator`, from the options; with `distributed`, from the environment
    (Slurm, Open MPI, TPU pods); else this is the only process.

    Raises:
        UserError: if the options do not fit together, or nobody answers.
    """
    _check(devices)
    if devices.cpu_devices:
        jax.config.update("jax_num_cpu_devices", devices.cpu_devices)
    if devices.coordinator is None and not devices.distributed:
        yield
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            devices.coordinator,
            devices.processes,
            devices.process_id,
            initialization_timeout=_FOR_ALL_TO_COME,
            heartbeat_timeout_seconds=max(10, devices.process_timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "The processes must find each other, but: "
            f"{str(error).splitlines()[0].rstrip('.')}. Check `--coordinator`, "
            "`--processes` and `--process-id`, or the environment for `--distributed`."
        ) from error
    yield
    jax.distributed.shutdown()


def leave(message: str, *, code: int = LOST) -> None:
    """Ends this process at once, without waiting for one that is gone."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(code)


class Deadline:
    """Ends this process if `beat` is not called for `seconds`. Use it with `with`.

    A single process has no deadline: nobody can keep it waiting. An error of the
    runtime inside the block means the same as silence: a peer is gone. If JAX's runtime
    ends this process instead, which no Python code can see, a second process that has
    waited for nothing else says so.

    Attributes:
        seconds: between two calls of `beat`; the first one starts the clock, because
            nobody knows how long compiling takes.
        advice: what to do, the end of the message.
    """

    def __init__(self, seconds: float, *, advice: str):
        self.seconds, self.advice = seconds, advice
        self._last: float | None = None
        self._over = threading.Event()
        self._mourner: subprocess.Popen | None = None

    def __enter__(self) -> "Deadline":
        if jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
            last_word = (
                f"error: {_name()} was ended: by a signal, or by JAX's runtime because "
                f"another process was lost, see above. {self.advice}"
            )
            self._mourner = subprocess.Popen(
                [sys.executable, "-S", "-c", _SPEAK_AT_THE_END, last_word],
                stdin=subprocess.PIPE,
                # A signal to the whole group must not silence it.
                start_new_session=True,
            )
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._over.set()
        self._dismiss()
        if jax.process_count() == 1 or error is None:
            return
        # Ending in order would wait for the others, who may be waiting for this one.
        if isinstance(error, UserError):
            leave(str(error), code=2)
        if isinstance(error, jax.errors.JaxRuntimeError):
            self._leave(f"a collective failed ({str(error).splitlines()[0]})")
        traceback.print_exception(error)
        leave(f"{_name()} ended by a mistake of this program, see above", code=1)

    def beat(self) -> None:
        """Says that a step has ended."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for something that may take long, such as compiling."""
        self._last = None
        yield
        self.beat()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            last = self._last
            if last is not None and time.monotonic() - last > self.seconds:
                self._leave(f"no step ended for {self.seconds} s")

    def _leave(self, reason: str) -> None:
        self._dismiss()
        leave(f"{_name()} has lost another process: {reason}. {self.advice}")

    def _dismiss(self) -> None:
        if self._mourner is not None:
            self._mourner.kill()
            self._mourner.communicate()  # closes its input only now


def agree(value: int) -> int:
    """Returns the `value` of process 0."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(jax.numpy.int32(value)))


def all_true(*, value: bool) -> bool:
    """Tells whether `value` is true in every process; all must ask."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(jax.numpy.int32(value)).all())


def is_first() -> bool:
    """Tells whether this process writes the files."""
    return jax.process_index() == 0


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _check(devices: config.Devices) -> None:
    given = (devices.coordinator, devices.processes, devices.process_id)
    if any(value is not None for value in given[1:]) and devices.coordinator is None:
        raise UserError(
            "`--coordinator` must be given with `--processes` and `--process-id`, got "
            "None. Pass HOST:PORT of process 0."
        )
    if devices.coordinator is None or devices.distributed:
        return
    if devices.processes is None or devices.process_id is None:
        raise UserError(
            "`--processes` and `--process-id` must be given with `--coordinator`, got "
            f"{devices.processes} and {devices.process_id}. Pass both, or "
            "`--distributed` where the environment knows them."
        )
    if not 0 <= devices.process_id < devices.processes:
        raise UserError(
            f"`--process-id` must be below `--processes`, {devices.processes}, got "
            f"{devices.process_id}. The first one is 0."
        )
