"""Runs a command in a process of its own, and explains how that process ended.

JAX's runtime aborts a process that has lost another one, and the system kills one that
has used up the memory: no code inside can say what to do then. The parent can.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from experiments.common.errors import again

LOST = 3  # exit code of a process that has lost another one

_MARK = "JAXBN_SUPERVISED"
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def wanted(options: Sequence[str]) -> bool:
    """Tells whether a command line asks for several processes; not in the child."""
    names = {word.partition("=")[0].replace("_", "-") for word in options}
    return _MARK not in os.environ and bool(names & {"--coordinator", "--distributed"})


def supervise(arguments: Sequence[str]) -> int:
    """Runs `python -m experiments` with `arguments` and returns the exit code.

    Signals go to the child, once each, and the child ends when this process does.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        env=os.environ | {_MARK: "1"},
        stdin=subprocess.PIPE,
        # Ctrl-C goes to all processes of a terminal's group: it must not come twice.
        start_new_session=True,
    )
    forwarded = []

    def forward(number, frame):
        forwarded.append(number)
        child.send_signal(number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    code = child.wait()
    if code >= 0:
        return code
    if -code in forwarded:
        print("interrupted", file=sys.stderr)
        return 130
    line = f"{again(*arguments)} (and the other processes likewise)"
    print(f"error: {_reason(-code)} Continue with: {line}", file=sys.stderr)
    return LOST if -code == signal.SIGABRT else 128 - code


def end_with_parent() -> None:
    """Ends this process when `supervise` does, if it was started so."""
    if _MARK in os.environ:
        threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGKILL)


def _reason(number: int) -> str:
    if number == signal.SIGABRT:
        return (
            "This process has lost another one: JAX's runtime ended it, for the reason "
            "above."
        )
    return (
        f"This process was ended by {signal.Signals(number).name}; the system does so "
        "when the memory is used up."
    )
