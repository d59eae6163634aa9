"""Rows of a run: those after the checkpoint go when it is resumed; JSON stays valid."""

import json
import math
from pathlib import Path

import pytest
from extras import needs

from experiments.common.errors import UserError
from experiments.scale.metrics import Writer, rows_until


def writer(out, *, step=0, before=None, writes=True, tensorboard=False):
    return Writer(
        out, step=step, before=before or {}, writes=writes, tensorboard=tensorboard
    )


def write(out, *steps, begin=0, **options):
    with writer(out, step=begin, **options) as opened:
        for step in steps:
            opened.write("metrics", step, {"loss": 1.5 / step})
    return opened.written()


def steps_of(out):
    return [json.loads(line)["step"] for line in lines(out)]


def lines(out):
    return (out / "metrics.jsonl").read_text().splitlines()


def test_a_resumed_run_repeats_no_row(tmp_path):
    write(tmp_path, 1, 2, 3)
    write(tmp_path, 3, 4, begin=2)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    write(tmp_path, 1)
    assert steps_of(tmp_path) == [1]


def test_half_a_line_of_a_killed_process_goes(tmp_path):
    write(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert rows_until(path, 9) == ([{"step": 1, "loss": 1.5}], "")
    assert rows_until(tmp_path / "none.jsonl", 9) == ([], "")


def test_other_processes_write_nothing(tmp_path):
    write(tmp_path, 1, writes=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(value, tmp_path):
    with writer(tmp_path) as opened:
        opened.write("metrics", 1, {"loss": value, "skipped": 3})
    assert json.loads(lines(tmp_path)[0]) == {"step": 1, "loss": None, "skipped": 3}


def test_tensorboard_gets_the_same_numbers(tmp_path):
    needs("tensorboardX")
    with writer(tmp_path, tensorboard=True) as opened:
        opened.write("metrics", 1, {"loss": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"metrics/loss" in events.read_bytes()


def test_tensorboard_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with (
        pytest.raises(UserError, match=r"pip install \"jaxbn\[tensorboard\]\""),
        writer(tmp_path, tensorboard=True),
    ):
        pass


@pytest.mark.parametrize(
    ("damage", "kept", "said"),
    [
        (lambda b: b"", [], "it is not what"),
        (lambda b: b.replace(b'"step": 2', b'"step": \xff'), [1], "line 2: "),
        (lambda b: b.replace(b"0.75", b"0.74"), [1, 2, 3], "it is not what"),
        (lambda b: b[b.index(b"\n") + 1 :], [2, 3], "it is not what"),
        (lambda b: b"5\n" + b, [], "line 1: Expected `object`, got `int`"),
        (lambda b: b"{}\n" + b, [], "line 1: it has no step"),
        (lambda b: b.replace(b"0.75", b"[0]"), [1], "line 2: Expected"),
        (lambda b: b'{"a":' * 9000 + b"\n" + b, [], "line 1: "),
    ],
)
def test_a_damaged_file_is_told_and_kept_aside(damage, kept, said, tmp_path, capsys):
    before = write(tmp_path, 1, 2, 3)
    path = tmp_path / "metrics.jsonl"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    after = write(tmp_path, 4, begin=3, before=before)
    errors = capsys.readouterr().err
    assert said in errors and errors.startswith("note: ") and errors.count("\n") == 1
    assert steps_of(tmp_path) == [*kept, 4]
    assert (tmp_path / "damaged" / "metrics.jsonl").read_bytes() == damaged
    write(tmp_path, begin=4, before=after)  # it is told once
    assert capsys.readouterr().err == ""


def test_a_file_that_is_gone_is_told(tmp_path, capsys):
    before = write(tmp_path, 1)
    (tmp_path / "metrics.jsonl").unlink()
    write(tmp_path, 2, begin=1, before=before)
    assert "and is gone" in capsys.readouterr().err


@pytest.mark.parametrize("buffering", [1, 99])  # found in `write`, or at the end
def test_a_row_that_cannot_be_written_is_one_line(buffering, tmp_path):
    def fill():
        with writer(tmp_path) as opened:
            opened._files["metrics"].close()
            full = Path("/dev/full").open("a", buffering=buffering)  # noqa: SIM115
            opened._files["metrics"] = full
            opened.write("metrics", 1, {"loss": 1})

    with pytest.raises(UserError, match=r"No space left on device\. Make room"):
        fill()
