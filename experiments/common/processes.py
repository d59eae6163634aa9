"""Several processes: how they agree, and how one ends without the others."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.common.errors import UserError

# What talks to the other processes. It raises all kinds of errors when one is gone.
_TALKING = ("jax.experimental.multihost_utils", "orbax.checkpoint._src.multihost")
_leaving = threading.Lock()
_WRITING = 0.3  # seconds in which a thread ends what it is writing


class AgreedError(UserError):
    """An error that every process raises, so that all can end in order."""


def leave(message: str, *, code: int) -> None:
    """Ends this process at once, without waiting for one that is gone.

    The message is the last line: other threads, also those of JAX's runtime, which
    tells of the same loss in its own words, write nothing after it.
    """
    _leaving.acquire()  # for good: a second thread that comes here waits for the end
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        error = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        time.sleep(_WRITING)  # what has begun still goes to where 2 was
        os.write(error, f"error: {' '.join(message.split())}\n".encode())
    finally:  # also when nobody reads any more
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
            raise AgreedError(found)
    for number, found in enumerate(messages):
        if found:
            raise AgreedError(f"Process {number} must be able to go on, but: {found}")


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
