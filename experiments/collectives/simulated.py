"""Devices that a CPU pretends to be."""

import contextlib
from typing import Any

import jax

from experiments.common.errors import UserError


def devices(count: int, *, option: str = "--devices") -> list[Any]:
    """Returns `count` simulated devices.

    Args:
        count: how many.
        option: what the user asked for them with, for the message.

    Raises:
        UserError: if there are fewer, because JAX was told so before.
    """
    with contextlib.suppress(RuntimeError):  # the devices are known already
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise UserError(
            f"`{option}` must be at most {len(found)}, the number of simulated "
            f"devices, got {count}. Unset XLA_FLAGS and JAX_NUM_CPU_DEVICES."
        )
    return found[:count]
