"""Several processes: how they find each other, and what happens when one is lost.

JAX's own runtime connects them; this module adds a deadline for every step, so that the
processes that are left say what happened and end, instead of waiting.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from experiments.errors import UserError
from experiments.scale import config

LOST = 3  # exit code of a process that has lost another one

_FOR_ALL_TO_COME = 120


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
            # The deadline of a step must come first: it can say what happened.
            heartbeat_timeout_seconds=max(100, 2 * devices.process_timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "The processes must find each other, but: "
            f"{str(error).splitlines()[0].rstrip('.')}. Check `--coordinator`, "
            "`--processes` and `--process-id`, or the environment for `--distributed`."
        ) from error
    yield
    jax.distributed.shutdown()


def leave(message: str) -> None:
    """Ends this process at once, without waiting for one that is gone."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(LOST)


class Deadline:
    """Ends this process if `beat` is not called for `seconds`. Use it with `with`.

    A single process has no deadline: nobody can keep it waiting. An error of the
    runtime inside the block means the same as silence: a peer is gone.

    Attributes:
        seconds: between two calls of `beat`; the first one starts the clock, because
            nobody knows how long compiling takes.
        advice: what to do, the end of the message.
    """

    def __init__(self, seconds: float, *, advice: str):
        self.seconds, self.advice = seconds, advice
        self._last: float | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Deadline":
        if jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._over.set()
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            self._leave(f"a collective failed ({str(error).splitlines()[0]})")

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
        me, all_of_them = jax.process_index(), jax.process_count()
        leave(
            f"process {me} of {all_of_them} has lost another process: {reason}. "
            f"{self.advice}"
        )


def agree(value: int) -> int:
    """Returns the `value` of process 0."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(jax.numpy.int32(value)))


def is_first() -> bool:
    """Tells whether this process writes the files."""
    return jax.process_index() == 0


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
