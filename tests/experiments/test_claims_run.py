"""The commands run, verify and report, on the experiments that take a second."""

import gzip
import json
import shutil
import time
from pathlib import Path

import pytest
from claims_runs import use_coins
from train_runs import contents

from experiments.__main__ import main
from experiments.claims import claim_scale_invariance as invariance
from experiments.claims import claim_spectrum as spectrum
from experiments.claims import study
from experiments.claims.lab import schema, store
from experiments.claims.lab.experiment import Setting
from experiments.claims.lab.table import Table

NAMES = ("scale-invariance", "clear")
ANY_TIME = ("timings.json", "parts")
PART = Path("parts/clear/0/bn.json")


def run(out, *options, names=NAMES):
    words = ["run", *names, "--preset", "smoke", "--seed", "0", "--out", str(out)]
    return main([*words, *options])


def steady(out):
    """What must not differ between two runs; parts hold seconds."""
    return {k: v for k, v in contents(out).items() if not k.startswith(ANY_TIME)}


@pytest.fixture(scope="module", autouse=True)
def coins():
    with pytest.MonkeyPatch.context() as patch:
        use_coins(patch)
        yield


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("claims") / "run"
    assert run(out, "--jobs", "1") == 0
    return out


@pytest.fixture
def finished(finished_once, tmp_path):
    return shutil.copytree(finished_once, tmp_path / "run")


def change(path, how):
    """Rewrites a file, compressed or not."""
    packed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    content = how(content.decode()).encode()
    path.write_bytes(gzip.compress(content) if packed else content)


def replaced(path, old, new):
    """Rewrites a file that has `old`."""

    def how(text):
        assert old in text
        return text.replace(old, new)

    change(path, how)


def measured(out, name, arm):
    """The rows of an arm."""
    path = store.part(out, study.chosen((name,))[0], arm)
    return store.load_part(path)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("gone", [("bn",), ("none", "bn")], ids=["alone", "both"])
def test_the_same_seed_gives_the_same_bits_in_worker_processes(tmp_path, gone):
    """What was measured in this process is measured again."""
    whole, out = tmp_path / "whole", tmp_path / "again"
    assert run(whole, "--jobs", "1", names=("scale-invariance",)) == 0
    shutil.copytree(whole, out)
    experiment = study.chosen(("scale-invariance",))[0]
    paths = [store.part(out, experiment, arm) for arm in gone]
    for path in paths:
        path.unlink()
    for path in out.glob("*.json*"):
        if path.name not in ("config.json", "environment.json"):
            path.unlink()
    assert main(["run", "--resume", "--out", str(out), "--jobs", "2"]) == 0
    assert all(path.is_file() for path in paths)
    assert steady(whole) == steady(out)


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    out = tmp_path / "again"
    assert run(out, "--jobs", "1", names=("clear",)) == 0
    for arm in ("none", "bn"):
        assert measured(finished, "clear", arm) == measured(out, "clear", arm)


def test_scaling_the_weights_scales_the_gradient_by_the_inverse(finished_once):
    table = Table(measured(finished_once, "scale-invariance", "bn"))
    assert (invariance.digits(table, "gradient") > 5).all()
    assert (invariance.digits(table, "output") > 5).all()


def test_plain_deep_linear_nets_collapse_to_one_dimension():
    table = Table(spectrum.measure("none rank", Setting("smoke", seed=0)))
    assert (table.values("none rank", "last") < 3).all()


def test_resume_repeats_nothing_that_finished(finished):
    gone = finished / PART
    gone.unlink()
    kept = {p: p.stat().st_mtime_ns for p in finished.rglob("parts/*/*/*.json")}
    before = steady(finished)
    assert main(["run", "--resume", "--out", str(finished), "--jobs", "1"]) == 0
    assert gone.is_file() and steady(finished) == before
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_part_that_was_cut_off_by_a_kill_is_measured_again(finished):
    # Parts are written in one step, so a kill leaves none rather than half of one.
    (finished / PART).with_name(".bn.json.1.tmp").write_text('{"rows": [')
    assert main(["run", "--resume", "--out", str(finished), "--jobs", "1"]) == 0


@pytest.mark.parametrize("content", [b"", b'{"rows": [', b"[]", b"\xff", b"{}"])
def test_a_part_that_was_damaged_is_measured_again(finished, content):
    path, before = finished / PART, steady(finished)
    assert path.is_file()
    path.write_bytes(content)
    assert main(["run", "--resume", "--out", str(finished), "--jobs", "1"]) == 0
    assert steady(finished) == before


@pytest.mark.parametrize(
    "old, new",
    [
        ('"smoke"', '"foo"'),
        ('"seed": 0', '"seed": "0"'),
        ('"data_dir": null', '"data_dir": 3'),
        ('"clear"', "3"),
        ('"preset"', '"presets"'),
    ],
)
def test_options_that_were_changed_by_hand_are_refused(finished, capsys, old, new):
    replaced(finished / "config.json", old, new)
    for reason in ("must be as the run wrote it", "must be whole, but: "):
        before = contents(finished)
        assert main(["run", "--resume", "--out", str(finished)]) == 2
        error = capsys.readouterr().err
        assert f"config.json' {reason}" in error and error.count("\n") == 1
        assert contents(finished) == before
        (finished / "checksums" / "files.json").unlink(missing_ok=True)


def test_data_that_cannot_be_read_leave_no_run(tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out, "--data-dir", str(tmp_path / "no"), names=("convergence",)) == 2
    error = capsys.readouterr().err
    assert "`--data-dir` must contain" in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    finished, capsys, monkeypatch, late
):
    def full(path, content):
        raise OSError(28, "No space left on device")

    before = steady(finished)
    if not late:  # the first thing to be written is then a part
        (finished / PART).unlink()
    words = ["run", "--resume", "--out", str(finished), "--jobs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(store.files, "write_bytes", full)
        assert main(words) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: `--out` must be a directory that can be")
    assert "Traceback" not in "".join(errors)
    assert main(words) == 0
    assert steady(finished) == before


@pytest.mark.parametrize("damage", ["a line", "timings"])
def test_a_report_of_a_damaged_run_says_so(finished, capsys, damage):
    if damage == "a line":
        change(finished / store.ROWS, lambda text: text[text.index("\n") + 1 :])
    else:
        (finished / "timings.json").unlink()
    assert main(["report", str(finished)]) == 4
    error = capsys.readouterr().err
    assert (
        "runs.jsonl.gz' must be as" if damage == "a line" else "timings.json"
    ) in error
    assert error.count("\n") == 1
    assert not (finished / "report.html").exists()


def test_resume_with_another_seed_is_refused(finished, capsys):
    assert main(["run", "--resume", "--out", str(finished), "--seed", "7"]) == 2
    assert "`--seed` must stay 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("environment.json", '"processor": "', '"processor": "other ', "processor ch"),
        (
            "environment.json",
            '"xla_flags": ',
            '"xla_flags": "-x", "was": ',
            "xla_flags",
        ),
        ("config.json", '"rules": "', '"rules": "0', "with the present rules"),
    ],
)
def test_resume_elsewhere_or_with_other_rules_is_refused(
    finished, capsys, name, old, new, message
):
    replaced(finished / name, old, new)
    (finished / "checksums" / "files.json").unlink()
    before = contents(finished)
    assert main(["run", "--resume", "--out", str(finished)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(finished) == before


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """A run of all looks, and what it had measured after the first."""
    out = tmp_path_factory.mktemp("claims") / "looks"
    words = ["run", "clear", "close", "--jobs", "1", "--out", str(out)]
    assert main([*words, "--preset", "standard"]) == 0
    return out


def blocks_of(out, name):
    return sorted(int(path.name) for path in (out / "parts" / name).iterdir())


def test_further_starts_are_for_what_is_undecided(sequential):
    assert blocks_of(sequential, "clear") == [0]
    assert blocks_of(sequential, "close") == [0, 1, 2, 3]
    clear, close = json.loads((sequential / "verdicts.json").read_text())["verdicts"]
    assert (clear["verdict"], clear["n"]) == ("supported", 10)
    assert (close["verdict"], close["n"]) == ("undecided", 40) and close["needed"] > 40
    rows = schema.load(sequential / store.ROWS)
    starts = {row["start"] for row in rows if row["experiment"] == "close"}
    assert starts == set(range(40))
    assert main(["verify", str(sequential)]) == 0


def test_another_block_has_fresh_numbers(sequential):
    rows = schema.load(sequential / store.ROWS)
    values = [row["metrics"]["close"] for row in rows if row["experiment"] == "close"]
    assert len(set(values)) == len(values) == 80


def test_a_look_that_was_cut_off_counts_when_it_is_whole(sequential, tmp_path, capsys):
    out = shutil.copytree(sequential, tmp_path / "run")
    (out / "parts/close/3/bn.json").unlink()
    store.write(out, study.chosen(("clear", "close")), schema.load(out / "config.json"))
    assert main(["verify", str(out)]) == 4
    assert "close: is undecided and lacks its next starts" in capsys.readouterr().err
    assert main(["run", "--resume", "--out", str(out), "--jobs", "1"]) == 0
    assert steady(out) == steady(sequential)


def test_out_of_time_keeps_what_finished(tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(study.time, "monotonic", lambda: float(next(clock)))
    assert run(tmp_path / "run", "--max-minutes", "1") == study.OUT_OF_TIME
    verdicts = json.loads((tmp_path / "run" / "verdicts.json").read_text())
    assert {row["verdict"] for row in verdicts["verdicts"]} == {"not run"}
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["report", str(tmp_path / "run")]) == 0


def test_verify_accepts_a_finished_run(finished, capsys):
    assert main(["verify", str(finished)]) == 0


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("verdicts.json", '"exact"', '"proved"', "Invalid enum value 'proved'"),
        ("effects.json", '"mean": ', '"mean": 1', "does not follow"),
        ("config.json", '"rules": "', '"rules": "0', "claims.toml or a claim file has"),
        (store.ROWS, '"start": 1', '"start": 0', "lacks"),
        (store.ROWS, '"schema": 2', '"schema": 1', "line 1: Invalid enum value 1"),
        (store.ROWS, '"metrics": {"', '"metrics": {"x', "no verdicts follow from"),
        ("summary.csv", "clear", "cleer", "does not follow"),
    ],
)
def test_verify_finds_what_was_changed(finished, capsys, name, old, new, message):
    replaced(finished / name, old, new)
    assert main(["verify", str(finished)]) == 4
    error = capsys.readouterr().err
    assert message in error or f"{name}' must be as the run wrote it" in error
    (finished / "checksums" / "files.json").unlink()  # results of a run before it
    assert main(["verify", str(finished)]) == 4
    assert message in capsys.readouterr().err


def test_a_part_that_was_changed_is_measured_again(finished):
    before = steady(finished)
    path = finished / PART
    content = path.read_text()
    at = content.index(".", content.index('"metrics"')) + 1
    path.write_text(content[:at] + str((int(content[at]) + 1) % 10) + content[at + 1 :])
    assert store.load_part(path) is None
    assert main(["run", "--resume", "--out", str(finished), "--jobs", "1"]) == 0
    assert steady(finished) == before


def test_verify_without_a_run_is_one_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (("--seed", "-1"), "`--seed` must be at least 0"),
        (("--max-minutes", "0"), "`--max-minutes` must be above 0"),
        (("--jobs", "0"), "`--jobs` must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, options, message):
    assert run(tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [(), ("convergense",)])
def test_unknown_experiments_are_listed(tmp_path, capsys, names):
    assert run(tmp_path / "run", names=names) == 2
    assert "convergence, learning-rate" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_stops_after_the_arms_that_run(tmp_path, monkeypatch, capsys):
    out, measure = tmp_path / "run", study._measure_arm

    def slow(*arguments):
        import os
        import signal

        found = measure(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return found

    monkeypatch.setattr(study, "_measure_arm", slow)
    assert run(out, "--jobs", "1") == 130
    assert 1 <= len(list(out.rglob("parts/*/*/*.json"))) < 5
    monkeypatch.undo()
    assert main(["run", "--resume", "--out", str(out), "--jobs", "1"]) == 0


def test_the_command_of_an_experiment_reproduces_it():
    one = study.chosen(("cost",))[0]
    assert store.command(one, {"preset": "quick", "seed": 3}) == (
        "python -m experiments run cost --preset quick --seed 3"
    )
