"""Whole runs in processes of their own: stopped, killed, split, resumed."""

import json
import os
import random
import signal
import time

import pytest
from scale_runs import (
    command,
    end,
    results,
    rows,
    start,
    start_all,
    train,
    wait_for_a_save,
    wait_for_step,
    write_idx,
)

from experiments.__main__ import main

pytestmark = pytest.mark.slow  # each starts programs that compile


def assert_close(found, want):
    assert len(found) == len(want)
    for row, expected in zip(found, want, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_a_run_leaves_its_files(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"config.json", "environment.json", "summary.json", "memory.json"}
    assert list(whole.glob("profile/**/*.xplane.pb"))
    assert list(whole.glob("tensorboard/events.*"))
    found = rows(whole)
    assert [row["step"] for row in found if "loss" in row] == list(range(1, 13))
    assert [row["eval_examples"] for row in found if "eval_loss" in row] == [20]


def test_sigterm_saves_and_resuming_is_bit_identical(whole, cache, tmp_path):
    running = start(tmp_path / "run", cache, cpu_devices=8)
    wait_for_step(running, 2)
    running.send_signal(signal.SIGTERM)
    (code,), (errors,) = end(running)
    assert code == 130 and "continue with" in errors
    train(tmp_path / "run", cache, "--resume")
    assert results(tmp_path / "run") == results(whole)


def test_a_run_can_be_lengthened(cache, tmp_path):
    train(tmp_path / "run", cache, steps=8)
    train(tmp_path / "run", cache, "--resume", steps=12)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found if "loss" in row][-1] == 12
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 12


def test_two_processes_compute_what_one_does(whole, cache, tmp_path):
    train(tmp_path / "run", cache, processes=2)
    assert_close(rows(tmp_path / "run"), rows(whole))


def differing(out, cache, /, *flags, common=None, **options):
    """Two processes, the second with other options: exit codes and last lines."""
    both = {"second": (flags, options), **(common or {})}
    codes, errors = end(*start_all(out, cache, processes=2, **both), timeout=120)
    return codes, [text.splitlines()[-1] for text in errors]


@pytest.mark.parametrize(("option", "value"), [("lr", 0.3), ("cpu_devices", 2)])
def test_processes_that_disagree_stop_at_once(option, value, cache, tmp_path):
    codes, said = differing(tmp_path / "run", cache, **{option: value})
    name = option.replace("_", "-")
    assert codes == [2, 2] and said[0] == said[1]
    assert said[0].startswith(f"error: `--{name}` must be the same in all processes")
    assert not (tmp_path / "run").exists()


def test_processes_with_other_files_stop_at_once(cache, tmp_path):
    codes, said = differing(tmp_path / "run", cache, "--resume")
    assert codes == [2, 2] and said[0].startswith("error: `--resume` must be the same")
    codes, said = differing(tmp_path / "run", cache, out=tmp_path / "other")
    assert codes == [2, 2]
    assert said[0].startswith("error: Process 1 must be able to go on, but: `--out` mu")
    assert said[1].startswith("error: `--out` must be one directory that all processes")


def test_data_that_one_process_cannot_read_stop_all(cache, tmp_path):
    here, other = tmp_path / "here", tmp_path / "other"
    for folder, count in ((here, 20), (other, 19)):
        folder.mkdir()
        write_idx(folder, prefix="train", count=count)
        write_idx(folder, prefix="t10k", count=20)
    common = {"source": "mnist-idx", "channels": 1, "data_dir": here}
    out, options = tmp_path / "run", {"common": common}
    codes, said = differing(out, cache, data_dir=tmp_path / "none", **options)
    assert codes == [2, 2]
    assert "Process 1 must be able to go on, but: `--data-dir` must be" in said[0]
    assert said[1].startswith("error: `--data-dir` must be a directory")
    codes, said = differing(out, cache, data_dir=other, **options)
    assert codes == [2, 2] and said[0] == said[1]
    assert said[0].startswith("error: The data must be the same in all processes")
    assert not out.exists()


def test_a_lost_process_stops_the_other_and_one_can_go_on_alone(whole, cache, tmp_path):
    """The first one keeps JAX's coordinator, the second does not; then while saving."""
    for lost, saving in ((0, False), (1, False), (0, True), (1, True)):
        running = start_all(tmp_path / "run", cache, "--resume", processes=2)
        if saving:
            wait_for_a_save(tmp_path / "run", running[0])
        else:
            wait_for_step(running[0], 1 + 2 * lost)
        running[lost].kill()
        codes, errors = end(*running, timeout=120)
        assert codes[1 - lost] == 3, errors
        last = errors[1 - lost].splitlines()[-1]
        assert last.startswith("error: ") and "lost another one" in last
        assert "Continue with: python -m experiments train" in last
        assert "--resume" in last and "--process-id" in last
    train(tmp_path / "run", cache, "--resume")
    assert_close(rows(tmp_path / "run"), rows(whole))


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(whole, cache, tmp_path):
    no_large_files = "ulimit -S -f 20; trap '' XFSZ; exec \"$@\""
    out, within = tmp_path / "run", ["bash", "-c", no_large_files, "bash"]
    running = start(out, None, cpu_devices=8, within=within)
    (code,), (errors,) = end(running)
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: `--out` must be a directory that")
    train(out, cache, "--resume")
    assert results(out) == results(whole)


def test_a_directory_that_cannot_be_used_is_one_line(whole, cache, capsys):
    running = start("/dev/null/run", cache, "--resume")
    assert main(command(whole, "--resume", lr=2)[3:]) == 2
    (code,), errors = end(running)
    assert code == 2
    for said in (*errors, capsys.readouterr().err):
        assert len(said.strip().splitlines()) == 1 and said.startswith("error: ")


@pytest.mark.parametrize(
    ("parallel", "processes"), [("explicit", 4), ("shard_map", 2), ("pmap", 2)]
)
def test_several_processes_compute_what_one_does_in_every_layout(
    parallel, processes, whole, cache, tmp_path
):
    train(tmp_path / "run", cache, processes=processes, parallel=parallel)
    assert_close(rows(tmp_path / "run"), rows(whole))


def test_sigterm_to_one_process_saves_all(whole, cache, tmp_path):
    first, second = start_all(tmp_path / "run", cache, processes=2, steps=400)
    wait_for_step(first, 3)
    second.send_signal(signal.SIGTERM)
    codes, errors = end(first, second)
    assert codes == [130, 130], errors
    assert "interrupted at step" in errors[0]


def test_kills_change_nothing(cache, tmp_path):
    """At random moments of 60 steps, every second one of which is saved.

    `JAXBN_KILLS=10` tries that many.
    """
    options = {"steps": 60, "checkpoint_every": 2, "eval_every": 20}
    whole = train(tmp_path / "whole", cache, **options)
    out, chance, killed = tmp_path / "run", random.Random(0), 0
    while killed < int(os.environ.get("JAXBN_KILLS", "4")):
        running = start(out, cache, "--resume", cpu_devices=8, **options)
        if killed % 2:
            wait_for_a_save(out, running)
        else:
            time.sleep(chance.uniform(1, 15))
        if running.poll() is not None:  # it was faster than the kill: begin anew
            assert end(running)[0] == [0]
            assert results(out) == results(whole)
            out = tmp_path / f"run-{killed}"
            continue
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
        killed += 1
    train(out, cache, "--resume", **options)
    assert results(out) == results(whole)


def test_memory_stays_flat_over_hundreds_of_steps(cache, tmp_path):
    out = tmp_path / "run"
    options = {
        "steps": 500,
        "checkpoint_every": 25,
        "eval_every": 125,
        "log_every": 10,
    }
    (code,), (errors,) = end(start(out, cache, cpu_devices=1, **options), timeout=600)
    assert code == 0, errors
    speeds = rows(out, "speed")
    last = [row["process_peak_bytes"] for row in speeds if row["step"] > 150]
    assert last[-1] < 1.05 * last[len(last) // 4]
