"""Worker processes: what happens to them on Ctrl-C and when their parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.common.errors import UserError
from experiments.common.workers import Workers

_PARENT = """
import os, time
from experiments.common.workers import Workers
if __name__ == "__main__":
    with Workers(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""


def fail():
    raise UserError("`--data-dir` must hold MNIST.")


def until(condition, *, seconds=60):
    """Waits for what must come, without saying how fast."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    # Ended, and not yet asked about by whoever has inherited it.
    return not (status.exists() and ") Z " in status.read_text())


def test_several_workers_are_other_processes_and_one_is_a_thread():
    with Workers(2) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
    with Workers(1) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()


def test_errors_of_a_worker_arrive():
    with Workers(2) as pool, pytest.raises(UserError, match="MNIST"):
        pool.submit(fail).result()


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not runs(worker))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_workers_too_and_nothing_is_lost(tmp_path):
    out = tmp_path / "run"
    options = ["scale-invariance", "--preset", "smoke", "--out", str(out)]
    command = [sys.executable, "-m", "experiments", "run", *options]
    with subprocess.Popen(command, start_new_session=True) as process:
        until(lambda: any(out.rglob("parts/*/*/*.json")) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) in (0, 130)  # 0 if all arms had begun
    again = [sys.executable, "-m", "experiments", "run", "--resume", "--out", str(out)]
    subprocess.run(again, check=True)
