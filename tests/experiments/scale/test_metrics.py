"""Rows of a run: those after the checkpoint go when it is resumed; JSON stays valid."""

import json
import math

import pytest
from extras import needs

from experiments.errors import UserError
from experiments.scale.metrics import Writer, rows_until


def write(out, *steps, begin=0, writes=True, **options):
    with Writer(out, step=begin, writes=writes, tensorboard=False, **options) as writer:
        for step in steps:
            writer.write("metrics", step, {"loss": 1.5 / step})


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
    assert [row["step"] for row in rows_until(path, 9)] == [1]
    assert rows_until(tmp_path / "none.jsonl", 9) == []


def test_other_processes_write_nothing(tmp_path):
    write(tmp_path, 1, writes=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(value, tmp_path):
    with Writer(tmp_path, step=0, writes=True, tensorboard=False) as writer:
        writer.write("metrics", 1, {"loss": value, "skipped": 3})
    assert json.loads(lines(tmp_path)[0]) == {"step": 1, "loss": None, "skipped": 3}


def test_tensorboard_gets_the_same_numbers(tmp_path):
    needs("tensorboardX")
    with Writer(tmp_path, step=0, writes=True, tensorboard=True) as writer:
        writer.write("metrics", 1, {"loss": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"metrics/loss" in events.read_bytes()


def test_tensorboard_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with (
        pytest.raises(UserError, match=r"pip install \"jaxbn\[tensorboard\]\""),
        Writer(tmp_path, step=0, writes=True, tensorboard=True),
    ):
        pass
