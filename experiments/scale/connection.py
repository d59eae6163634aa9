"""Connects the processes of a run."""

import contextlib
from collections.abc import Iterator

import jax

from experiments.common.errors import UserError, first_line
from experiments.common.processes import AgreedError
from experiments.scale import config, meeting

_TO_CONNECT = 60  # seconds, once all have met


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
            f"{first_line(error)}. Check `--coordinator`, "
            "`--processes` and `--process-id`, or the environment for `--distributed`."
        ) from error
    # An error that all raise ends all in order. After another one they may be anywhere,
    # and if process 0 left first, JAX would abort those that have not ended yet.
    try:
        _check_devices()
        yield
    except AgreedError:
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def alone(devices: config.Devices) -> bool:
    """Tells whether this is to be the only process."""
    return devices.coordinator is None and not devices.distributed


def _check_devices() -> None:
    held = [0] * jax.process_count()
    for device in jax.devices():
        held[device.process_index] += 1
    if len(set(held)) > 1:
        raise AgreedError(
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
