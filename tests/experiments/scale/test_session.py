"""Single sessions of a run in this process, on a network that compiles quickly."""

import json

import jax
import pytest
from scale_runs import write_idx

from experiments.__main__ import main
from experiments.scale.profile import Profile


def options(out, **changed):
    """The words of a tiny run."""
    given = {
        "config": "cifar10-resnet20",
        "source": "fake",
        "depth": 8,
        "image-size": 8,
        "fake-train-examples": 20,
        "fake-eval-examples": 11,
        "batch-size": 8,
        "log-every": 1,
        "steps": 3,
    }
    words = {k: v for k, v in (given | changed).items() if v is not None}
    return ["train", "--out", str(out), *(f"--{k}={v}" for k, v in words.items())]


def refused(words, capsys, message):
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


@pytest.fixture
def traces(monkeypatch):
    """Where traces begin and end, in place of traces."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: found.append("begin"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("end"))
    return found


def take(profile, steps, *, stop=None):
    for step in steps:
        profile.before(step)
        if step == stop:
            raise KeyboardInterrupt
        profile.after(step, jax.numpy.ones(()))


@pytest.mark.parametrize(
    ("profiled", "steps", "traced"),
    [
        (range(1, 3), range(1, 5), ["begin", "end"]),
        (range(1, 11), range(1, 5), ["begin", "end"]),  # the run ends before
        (range(1, 4), range(3, 6), ["begin", "end"]),  # resumed after the first
        (range(1, 3), range(4, 6), []),
        (range(0), range(1, 5), []),
    ],
)
def test_a_trace_that_begins_ends(traces, tmp_path, profiled, steps, traced):
    with Profile(tmp_path, profiled) as profile:
        take(profile, steps)
    assert traces == traced


def test_a_trace_ends_when_the_run_is_interrupted(traces, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        Profile(tmp_path, range(1, 9)) as profile,
    ):
        take(profile, range(1, 9), stop=4)
    assert traces == ["begin", "end"]


def test_data_that_cannot_be_read_leave_no_run(tmp_path, capsys):
    out, folder = tmp_path / "run", tmp_path / "data"
    folder.mkdir()
    words = [*options(out, source="mnist-idx", channels=1), "--data-dir", str(folder)]
    refused(words, capsys, "`--data-dir` must contain train-images-idx3-ubyte")
    write_idx(folder, prefix="train", count=20)
    refused(words, capsys, "`--data-dir` must contain t10k-images-idx3-ubyte")
    assert not out.exists()


@pytest.mark.slow
def test_numbers_that_are_not_finite_end_a_run_in_order(tmp_path, capsys):
    out = tmp_path / "my runs" / "run"  # a path with a space
    assert main([*options(out, lr=1e20), "--profile", "1:10"]) == 0
    found = json.loads((out / "summary.json").read_text())
    assert found["loss"] is None and found["steps"] == 3
    assert list(out.glob("profile/**/*.xplane.pb"))
    assert main(["eval", "--out", str(out)]) == 0
    assert json.loads((out / "eval_ema.json").read_text())["loss"] is None
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert "nothing left to do" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_not_finite_too_often_stops_the_run_with_a_message(tmp_path, capsys):
    words = options(tmp_path / "run", lr=1e38, steps=12)
    assert main([*words, "--stop-after-nonfinite", "2"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "2 steps in a row" in errors[-1] and errors[-1].startswith("error: ")


@pytest.mark.slow
def test_what_is_done_with_a_run(tmp_path, capsys):
    out, given = tmp_path / "run", tmp_path / "given"
    assert main(options(out, steps=1)) == 0
    assert main(["eval", "--out", str(out)]) == 0
    before = (out / "eval_ema.json").read_bytes()
    words = ["recalibrate", "--out", str(out), "--to", str(given), "--samples", "16"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["eval", "--out", str(out), "--statistics", str(given)]) == 0
    assert f"statistics: {given}" in capsys.readouterr().out
    assert (out / "eval_ema.json").read_bytes() == before
    found = json.loads((out / "eval_given.json").read_text())
    assert (found["bn_stats"], found["statistics"]) == ("given", str(given))
    words = ["eval", "--out", str(out), "--bn-stats", "batch", "--statistics", "x"]
    refused(words, capsys, "`--bn-stats` must be ema with `--statistics`")
    path = out / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"log_every": 1', '"log_every": 2'))
    refused(["eval", "--out", str(out)], capsys, "config.json' must be as the run wr")
    path.write_text(text)
    (out / "checksums" / "files.json").unlink()
    for key, old, new in (("depth", 8, 14), ("seed", 0, 1)):
        text = path.read_text()
        path.write_text(text.replace(f'"{key}": {old}', f'"{key}": {new}'))
        refused(["eval", "--out", str(out)], capsys, "The checkpoint of step 1 in")
        path.write_text(text)
