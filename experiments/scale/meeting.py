"""Lets processes find each other before JAX connects them.

JAX aborts, after minutes and with a stack trace, if a process is missing, comes twice
or finds the port taken. So all meet here first, at the same address: process 0 waits
until every other one has said its number, and tells all that they may begin or why not.
"""

import contextlib
import errno
import os
import socket
import time
from typing import NamedTuple, TypeVar

import msgspec

from experiments.common.errors import UserError

_FOR_ALL_TO_COME = 120.0
_FOR_A_WORD = 5.0
_LONGEST_WORD = 4096

Word = TypeVar("Word", bound=msgspec.Struct)


class Place(NamedTuple):
    """The processes that meet, and the place.

    Attributes:
        host, port: of process 0.
        processes: how many come.
        number: of this one.
    """

    host: str
    port: int
    processes: int
    number: int


class _Guest(msgspec.Struct, tag="jaxbn guest"):
    number: int
    processes: int


class _Answer(msgspec.Struct, tag="jaxbn answer"):
    refused: str


def place(coordinator: str, *, processes: int, number: int) -> Place:
    """Reads HOST:PORT; `UserError` if it is something else."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"`--coordinator` must be HOST:PORT of process 0, got {coordinator!r}. "
            "Pass for example localhost:12345."
        )
    return Place(host.strip("[]"), int(port), processes, number)


def meet(here: Place, *, seconds: float = _FOR_ALL_TO_COME) -> None:
    """Returns when all processes have come.

    Raises:
        UserError: in every process that has come, if one does not, or comes twice, or
            was told another number of processes; in process 0 if its port is taken.
    """
    (_receive if here.number == 0 else _visit)(here, seconds)


def _receive(here: Place, seconds: float) -> None:
    end, refused = time.monotonic() + seconds, ""
    came, guests = set(), []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(here))
        while not refused and len(came) < here.processes - 1:
            server.settimeout(max(end - time.monotonic(), 0.001))
            try:
                guest = stack.enter_context(server.accept()[0])
            except TimeoutError:
                refused = _missing(here, came, seconds)
                break
            word = _hear(guest, _Guest)
            if word is None:
                continue  # a stranger at the port
            refused = _fault(here, came, word)
            came.add(word.number)
            guests.append(guest)
        server.close()  # JAX opens the port anew as soon as the others go on
        for guest in guests:
            with contextlib.suppress(OSError):  # it has ended; JAX will miss it
                _say(guest, _Answer(refused))
    if refused:
        raise UserError(refused)


def _server(here: Place) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", here.port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", here.port))
    except OSError as error:
        # If it is taken by another process 0, that one must not wait for this one.
        if error.errno == errno.EADDRINUSE and (reason := _refused_by_another(here)):
            raise UserError(reason) from error
        raise UserError(
            "`--coordinator` must name a free port on the machine of process 0, got "
            f"{here.host}:{here.port}: {os.strerror(error.errno or 0)}. Pass another "
            "one to all processes."
        ) from error


def _refused_by_another(here: Place) -> str:
    try:
        answer = _ask(here, _FOR_A_WORD)
    except OSError:
        return ""
    return answer.refused if answer else ""


def _missing(here: Place, came: set[int], seconds: float) -> str:
    absent = ", ".join(str(n) for n in range(1, here.processes) if n not in came)
    return (
        f"All {here.processes} processes must come to {here.host}:{here.port} within "
        f"{seconds:.0f} s, but process {absent} did not. Check that it was started, "
        "and its `--coordinator` and `--process-id`."
    )


def _fault(here: Place, came: set[int], word: _Guest) -> str:
    if word.processes != here.processes:
        return (
            f"`--processes` must be the same in all processes, got {here.processes} in "
            f"process 0 and {word.processes} in process {word.number}. Pass the number "
            "of all."
        )
    if word.number in (0, *came):
        return (
            f"`--process-id` must differ between the processes, got {word.number} "
            f"twice. Pass each number from 0 to {here.processes - 1} once."
        )
    return ""


def _visit(here: Place, seconds: float) -> None:
    end = time.monotonic() + seconds
    reason = "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            # Process 0 waits for the others, no longer than this one would.
            answer = _ask(here, left, for_an_answer=seconds + _FOR_A_WORD)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if answer is not None and answer.refused:
                raise UserError(answer.refused)
            if answer is not None:
                return
            reason = "what answers there is something else, or has ended"
        time.sleep(0.2)
    raise UserError(
        f"Process 0 must answer at {here.host}:{here.port} within {seconds:.0f} s, "
        f"but: {reason}. Check that it was started, and the `--coordinator` of both."
    )


def _ask(
    here: Place, seconds: float, *, for_an_answer: float = _FOR_A_WORD
) -> _Answer | None:
    with socket.create_connection((here.host, here.port), seconds) as server:
        _say(server, _Guest(here.number, here.processes))
        return _hear(server, _Answer, seconds=for_an_answer)


def _say(other: socket.socket, word: msgspec.Struct) -> None:
    other.sendall(msgspec.json.encode(word) + b"\n")


def _hear(
    other: socket.socket, kind: type[Word], *, seconds: float = _FOR_A_WORD
) -> Word | None:
    """The next word of the other; None if it says nothing of this kind."""
    other.settimeout(seconds)
    with (
        contextlib.suppress(OSError, msgspec.DecodeError),
        other.makefile("rb") as text,
    ):
        return msgspec.json.decode(text.readline(_LONGEST_WORD), type=kind)
    return None
