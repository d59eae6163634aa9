"""Several processes: how they connect, and how they agree on something."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import UserError
from experiments.scale import config, meeting

_TO_CONNECT = 60  # seconds, once all have met
# What talks to the other processes. It raises all kinds of errors when one is gone.
_TALKING = ("jax.experimental.multihost_utils", "orbax.checkpoint._src.multihost")


@contextlib.contextmanager
def started(devices: config.Devices) -> Iterator[None]:
    """Connects the processes; must be entered before JAX is used for anything else.

    With `coordinator`, from the options; with `distributed`, from the environment
    (Slurm, Open MPI, TPU pods); else this is the only process.

    Raises:
        UserError: if the options do not fit together, or a process does not come.
    """
    _check(devices)
    if devices.cpu_devices:
        jax.config.update("jax_num_cpu_devices", devices.cpu_devices)
    if alone(devices):
        yield
        return
    if not devices.distributed:
        meeting.meet(_place(devices))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            devices.coordinator,
            devices.processes,
            devices.process_id,
            initialization_timeout=_TO_CONNECT,
            heartbeat_timeout_seconds=max(10, devices.process_timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "The processes must find each other, but: "
            f"{str(error).splitlines()[0].rstrip('.')}. Check `--coordinator`, "
            "`--processes` and `--process-id`, or the environment for `--distributed`."
        ) from error
    _check_devices()
    yield
    jax.distributed.shutdown()


def alone(devices: config.Devices) -> bool:
    """Tells whether this is to be the only process."""
    return devices.coordinator is None and not devices.distributed


def leave(message: str, *, code: int) -> None:
    """Ends this process at once, without waiting for one that is gone."""
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(code)


def is_first() -> bool:
    """Tells whether this process writes the files."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Returns the `text` of every process, in order; all must ask."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: len(content)] = content
    everyone = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(everyone, sizes, strict=True)
    ]


def wait_for_all(name: str) -> None:
    """Returns when all processes have come to the place called `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
    """Returns the `value` of process 0."""
    return json.loads(gather(json.dumps(value))[0])


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Raises in all processes what is raised in one: none waits for the others."""
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    messages = gather(message)
    for number, found in enumerate(messages):
        if found and number == jax.process_index():
            raise UserError(found)
    for number, found in enumerate(messages):
        if found:
            raise UserError(f"Process {number} must be able to go on, but: {found}")


def lost_another(error: BaseException) -> bool:
    """Tells whether `error` means that another process is gone."""
    if jax.process_count() == 1:
        return False
    return any(
        isinstance(one, jax.errors.JaxRuntimeError)
        or any(
            frame.f_globals.get("__name__", "").startswith(_TALKING)
            for frame, _ in traceback.walk_tb(one.__traceback__)
        )
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from _chain(part)
        error = error.__cause__ or error.__context__


def _check_devices() -> None:
    held = [0] * jax.process_count()
    for device in jax.devices():
        held[device.process_index] += 1
    if len(set(held)) > 1:
        raise UserError(
            "`--cpu-devices` must be the same in all processes, and so must the number "
            f"of accelerators, got {', '.join(map(str, held))}. Start all processes "
            "with as many."
        )


def _place(devices: config.Devices) -> meeting.Place:
    assert devices.coordinator is not None
    assert devices.processes is not None and devices.process_id is not None
    return meeting.place(
        devices.coordinator, processes=devices.processes, number=devices.process_id
    )


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
    _place(devices)
