"""Options of several processes, and the deadline of a step, seen from one process."""

import os
import subprocess
import sys
import time

import jax
import pytest

from experiments.errors import UserError
from experiments.scale import processes
from experiments.scale.config import Devices


@pytest.mark.parametrize(
    "options, message",
    [
        ({"processes": 2}, "`--coordinator` must be given"),
        ({"coordinator": "h:1", "processes": 2}, "`--processes` and `--process-id` mu"),
        (
            {"coordinator": "h:1", "processes": 2, "process_id": 2},
            "`--process-id` must be below `--processes`, 2, got 2",
        ),
    ],
)
def test_messages(options, message):
    with pytest.raises(UserError, match=message), processes.started(Devices(**options)):
        pass


@pytest.fixture
def of_two(monkeypatch):
    """As if this was one of two processes; leaving it is an exception."""

    def leave(message, *, code=processes.LOST):
        left.append((code, message))

    left: list = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "leave", leave)
    return left


def test_a_step_that_does_not_end_ends_the_process(of_two):
    with processes.Deadline(0.2, advice="Do this.") as deadline:
        for _ in range(4):
            time.sleep(0.1)
            deadline.beat()
        assert not of_two
        with deadline.paused():
            time.sleep(0.4)
        assert not of_two
        time.sleep(0.6)
    code, message = of_two[0]
    assert code == processes.LOST
    assert message.startswith("process 0 of 2 has lost another process: no step ended")
    assert message.endswith("Do this.")


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("Wrong. Do."), 2, "Wrong. Do."),
        (jax.errors.JaxRuntimeError("Gloo failed\nat"), 3, "failed (Gloo failed). Do"),
        (KeyError("k"), 1, "mistake of this program"),
    ],
)
def test_an_error_ends_the_process_at_once(error, code, text, of_two, capsys):
    with (
        pytest.raises(type(error)),
        processes.Deadline(60, advice="Do this."),
    ):
        raise error
    assert of_two[0][0] == code and text in of_two[0][1]


def test_one_process_has_no_deadline():
    with pytest.raises(KeyError), processes.Deadline(0.01, advice="") as deadline:
        deadline.beat()
        time.sleep(0.2)
        raise KeyError


def test_the_last_word_is_said_when_its_process_is_killed():
    program = (
        "import subprocess, sys, os, signal\n"
        "from experiments.scale.processes import _SPEAK_AT_THE_END as code\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', code, 'last word'],"
        " stdin=subprocess.PIPE)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert ended.returncode == -9
    assert ended.stderr == "last word\n"
