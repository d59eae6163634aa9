"""Options of several processes, and the deadline of a phase, seen from one process."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments.common import processes, supervise
from experiments.common.errors import UserError
from experiments.scale import connection
from experiments.scale.config import Devices
from experiments.scale.deadline import Deadline

TWO = Devices(coordinator="h:1", processes=2, process_id=0, process_timeout=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"processes": 2}, "`--coordinator` must be given"),
        ({"coordinator": "h:1", "processes": 2}, "`--processes` and `--process-id` mu"),
        (
            {"coordinator": "h:1", "processes": 2, "process_id": 2},
            "`--process-id` must be below `--processes`, 2, got 2",
        ),
        ({"coordinator": "h", "processes": 2, "process_id": 1}, "must be HOST:PORT"),
    ],
)
def test_messages(options, message):
    with (
        pytest.raises(UserError, match=message),
        connection.started(Devices(**options)),
    ):
        pass


@pytest.fixture
def of_two(monkeypatch):
    """As if this was one of two processes; leaving it is an exception."""

    def leave(message, *, code):
        left.append((code, message))

    left: list = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "leave", leave)
    return left


def test_the_message_is_the_last_line_whatever_other_threads_write():
    program = """
import os, threading
from experiments.common import processes

def chatter():
    while True:
        os.write(2, b"runtime: lost\\n\\n")

def leave():
    start.wait()
    processes.leave("one of\\ntwo", code=3)

start = threading.Barrier(8)
threading.Thread(target=chatter, daemon=True).start()
for _ in range(8):
    threading.Thread(target=leave).start()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert ended.returncode == 3
    lines = ended.stderr.splitlines()
    assert lines[-1] == "error: one of two" and "runtime: lost" in lines
    assert len([line for line in lines if "error" in line]) == 1


def test_a_phase_that_does_not_end_ends_the_process(of_two):
    with Deadline(TWO, advice="Do this.") as deadline:
        deadline.beat()
        for _ in range(3):
            time.sleep(0.5)
            deadline.beat()
        with deadline.phase("saving"):
            time.sleep(1.3)
        assert not of_two
        deadline.beat("a batch")
        time.sleep(1.5)
    code, message = of_two[0]
    assert code == supervise.LOST
    assert message.startswith(
        "process 0 of 2 has lost another one: a batch did not end within 1 s. Do this."
    )


def failed_in(module, error):
    """An error that was raised by code of `module`, as if that was installed."""
    code = compile("def fail(error):\n    raise error\n", "file", "exec")
    place = {"__name__": module}
    exec(code, place)
    try:
        place["fail"](error)
    except type(error) as raised:
        return raised


def caused_by(cause):
    try:
        raise RuntimeError("wrapped") from cause
    except RuntimeError as error:
        return error


TALK = failed_in("jax.experimental.multihost_utils", ValueError("uneven\nat"))


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("Wrong. Do."), 2, "Wrong. Do."),
        (jax.errors.JaxRuntimeError("Gloo failed\nat"), 3, "(Gloo failed). Do"),
        (TALK, 3, "lost another one: ValueError (uneven). Do"),
        (caused_by(TALK), 3, "lost another one: RuntimeError (wrapped). Do"),
        (ExceptionGroup("many", [OSError(), caused_by(TALK)]), 3, "(many (2 sub"),
        (failed_in("orbax.checkpoint._src.multihost.b", TimeoutError()), 3, "no mess"),
        (failed_in("orbax.checkpoint.handlers", ValueError("k")), 1, "mistake of this"),
        (KeyError("k"), 1, "mistake of this program"),
    ],
)
def test_an_error_ends_the_process_at_once(error, code, text, of_two, capsys):
    with pytest.raises(type(error)), Deadline(TWO, advice="Do this."):
        raise error
    assert of_two[0][0] == code and text in of_two[0][1]


def test_one_process_has_no_deadline():
    alone = Devices(process_timeout=0, phase_timeout=0)
    with pytest.raises(KeyError), Deadline(alone, advice="") as deadline:
        deadline.beat()
        time.sleep(0.5)
        raise KeyError


def supervised(program, *, kill=None):
    """The exit code and stderr of `program` under supervision."""
    line = (
        "import sys, subprocess; from experiments.common import supervise\n"
        "run = subprocess.Popen\n"
        "subprocess.Popen = lambda command, **k: run([sys.executable, '-c', "
        f"{program!r}], **k)\nsys.exit(supervise.supervise(['train', '--lr', '1']))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", line],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if kill is not None:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(kill)
    _, errors = running.communicate(timeout=60)
    return running.returncode, errors


AGAIN = "Continue with: python -m experiments train --resume --lr 1"


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("import os; os.abort()", supervise.LOST, f"lost another one: JAX's .*{AGAIN}"),
        ("import os; os.kill(os.getpid(), 9)", 137, f"ended by SIGKILL; .*{AGAIN}"),
        ("import sys; sys.exit(5)", 5, "^$"),
    ],
)
def test_the_parent_says_how_its_process_ended(program, code, text):
    import re

    found, errors = supervised(program)
    assert found == code
    assert re.search(text, errors) and errors.count("\n") <= 1


WAITS = (
    "import signal, sys, time\n"
    "from experiments.common import supervise\n"
    "supervise.end_with_parent()\n"
    "def end(*_):\n"
    "    global came\n"
    "    came += 1\n"
    "came = 0\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "print('ready', flush=True)\n"
    "while not came: time.sleep(0.05)\n"
    "time.sleep(0.2); sys.exit(10 + came)\n"
)


def test_a_signal_comes_once_and_a_kill_ends_both():
    assert supervised(WAITS, kill=signal.SIGTERM) == (11, "")
    # Its output ends when the child has ended, too.
    assert supervised(WAITS, kill=signal.SIGKILL) == (-9, "")


def test_only_several_processes_are_supervised(monkeypatch):
    assert supervise.wanted(["--coordinator=h:1"])
    assert supervise.wanted(["--lr", "1", "--distributed"])
    assert not supervise.wanted(["--out", "coordinator"])
    monkeypatch.setenv(supervise._MARK, "1")
    assert not supervise.wanted(["--coordinator=h:1"])
