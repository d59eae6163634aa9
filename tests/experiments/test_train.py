"""`train` leaves a complete record, and a run can be interrupted anywhere."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sweeps import but_slow
from train_runs import TINY, contents, run_train

from experiments.common import checkpoint, checksums, progress
from experiments.digits import run, train
from experiments.digits.config import TrainConfig, stored

pytestmark = pytest.mark.usefixtures("small_net")
ROOT = Path(__file__).parents[2]


def metrics(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: row[key] for key in row if key != "seconds"} for row in rows]


def states(out):
    config = stored(TrainConfig(out=out))
    begun = run.Run(config, train.make_plans(config))
    return checkpoint.read_newest(begun.identity, jax.device_get(begun.states)).state


def interrupt_at(monkeypatch, step, *, times=1):
    update = progress.StepProgress.update

    def update_and_interrupt(self, done, text):
        update(self, done, text)
        for _ in range(times if done == step else 0):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.StepProgress, "update", update_and_interrupt)


def test_the_table_has_a_line_for_each_arm(finished_and_said):
    _, out, err = finished_and_said
    assert re.search(r"^bn +\d of 2 .*\d+\.\d \[", out, re.MULTILINE)
    assert re.search(r"^none +\d of 2 .*\d+\.\d \[", out, re.MULTILINE)
    assert "bn minus none, start by start" in out
    assert "s left" in err and len(err.splitlines()) < 15


def test_every_file_of_a_run_can_be_read(finished):
    assert json.loads((finished / "config.json").read_text())["steps"] == 6
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert set(json.loads((finished / "summary.json").read_text())["arms"]) == {
        "bn",
        "none",
    }
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    keys = [(row["arm"], row["start"], row["step"]) for row in metrics(finished)]
    arms, starts, steps = ("bn", "none"), (0, 1), (0, 2, 4, 6)
    assert sorted(keys) == [(a, s, t) for a in arms for s in starts for t in steps]


def test_nothing_in_a_run_names_the_directory(finished_once):
    for path in finished_once.glob("*.json*"):
        assert str(finished_once.parent) not in path.read_text()


@pytest.mark.parametrize(
    ("step", "elsewhere"), but_slow([(2, True), (4, False)], [(4, False)])
)
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    step, elsewhere, finished, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "interrupted run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        assert run_train("--out", out, *TINY) == 130
    message = f"interrupted at step {step}; continue with: python -m experiments train"
    assert f"{message} --resume --out '{out}'" in capsys.readouterr().err
    if elsewhere:
        path = out / "environment.json"
        path.write_text(path.read_text().replace('"python": "3', '"python": "2'))
    assert run_train("--resume", "--out", out) == 0
    said_so = "differs from environment.json" in capsys.readouterr().err
    assert said_so == elsewhere
    assert metrics(out) == metrics(finished)
    jax.tree.map(np.testing.assert_array_equal, states(out), states(finished))


@pytest.mark.slow
def test_a_run_that_is_lengthened_ends_as_if_it_had_been_longer(finished, tmp_path):
    out = tmp_path / "longer"
    assert run_train("--out", out, *TINY, "--steps", "4") == 0
    assert run_train("--resume", "--out", out, "--steps", "6") == 0
    assert metrics(out) == metrics(finished)
    jax.tree.map(np.testing.assert_array_equal, states(out), states(finished))
    assert json.loads((out / "config.json").read_text())["steps"] == 6
    assert run_train("--resume", "--out", out) == 0  # which changes nothing


def test_the_checkpoint_holds_the_running_statistics(finished):
    statistics = jax.tree.leaves(states(finished)["bn"].model.state)
    assert statistics and all(np.abs(leaf).max() > 0 for leaf in statistics)


@pytest.mark.slow
def test_a_second_interrupt_leaves_the_latest_checkpoint(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, times=2)
        assert run_train("--out", out, *TINY) == 130
    assert "interrupted at step 0; continue with" in capsys.readouterr().err
    assert run_train("--resume", "--out", out, "--steps", 6) == 0


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = contents(finished)
    assert run_train("--resume", "--out", finished) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert contents(finished) == before


@pytest.mark.slow
def test_resuming_writes_results_that_are_missing(finished):
    before = contents(finished)
    for name in ("summary.json", "curves.png", "metrics.jsonl"):
        (finished / name).unlink()
    assert run_train("--resume", "--out", finished) == 0
    after = contents(finished)
    assert after.pop("curves.png").startswith(b"\x89PNG")
    assert after == {name: before[name] for name in after}


def test_a_threshold_that_no_start_reaches_is_not_reached(tmp_path, capsys):
    assert run_train("--out", tmp_path, *TINY, "--norm", "none") == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "0 of 2" in line).count("not reached") == 2


@pytest.mark.slow
def test_other_options_train_on_signals(tmp_path):
    options = ("--data", "mnist1d", "--norm", "none", "--optimizer", "adamw")
    assert run_train("--out", tmp_path, *TINY, *options) == 0
    rows = metrics(tmp_path)
    assert {row["arm"] for row in rows} == {"none"}
    assert all(np.isfinite(row["test_loss"]) for row in rows)


@pytest.mark.slow
def test_ctrl_c_on_a_real_process_leaves_a_run_to_resume(tmp_path):
    command = [sys.executable, "-m", "experiments", "train", "--norm", "none"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert (first, process.returncode) == ("compiling the net with norm none\n", 130), (
        rest
    )
    assert "Traceback" not in rest
    assert "interrupted at step 0; continue with" in rest
    assert checksums.steps(tmp_path) == [0]
