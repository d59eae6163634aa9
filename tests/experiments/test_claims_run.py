"""The commands run, verify and report, on the experiments that take a second."""

import json
import re
import shutil
import subprocess
import time

import pytest
from train_runs import contents

from experiments.__main__ import main
from experiments.claims import claim_scale_invariance as invariance
from experiments.claims import claim_spectrum as spectrum
from experiments.claims import study
from experiments.claims.lab import store
from experiments.claims.lab.table import Table

NAMES = ("scale-invariance", "spectrum")
ANY_TIME = ("timings.json", "parts")


def run(out, *options, names=NAMES):
    return main(["run", *names, "--preset", "smoke", "--out", str(out), *options])


def steady(out):
    """What must not differ between two runs; parts hold seconds."""
    return {k: v for k, v in contents(out).items() if not k.startswith(ANY_TIME)}


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("claims") / "run"
    assert run(out, "--jobs", "1") == 0
    return out


@pytest.fixture(scope="module")
def reported(finished_once, tmp_path_factory):
    """A finished run with its report, to be looked at only."""
    out = shutil.copytree(finished_once, tmp_path_factory.mktemp("reported") / "run")
    assert main(["report", str(out)]) == 0
    return out


@pytest.fixture
def finished(finished_once, tmp_path):
    return shutil.copytree(finished_once, tmp_path / "run")


def measured(out, name, arm):
    """The rows of an arm."""
    path = store.part(out, study.chosen((name,))[0], arm)
    return store.load_part(path)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("gone", [("bn",), ("none", "bn")], ids=["alone", "both"])
def test_the_same_seed_gives_the_same_bits_in_worker_processes(
    finished, tmp_path, gone
):
    """What was measured in this process is measured again."""
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    experiment = study.chosen(("scale-invariance",))[0]
    paths = [store.part(out, experiment, arm) for arm in gone]
    for path in paths:
        path.unlink()
    for path in out.glob("*.json*"):
        if path.name not in ("config.json", "environment.json"):
            path.unlink()
    assert main(["run", "--resume", "--out", str(out), "--jobs", "2"]) == 0
    assert all(path.is_file() for path in paths)
    assert steady(finished) == steady(out)


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    out = tmp_path / "again"
    assert run(out, "--jobs", "1", names=("spectrum",)) == 0
    for arm in spectrum.ARMS:
        assert measured(finished, "spectrum", arm) == measured(out, "spectrum", arm)


def test_scaling_the_weights_scales_the_gradient_by_the_inverse(finished_once):
    table = Table(measured(finished_once, "scale-invariance", "bn"))
    assert (invariance.digits(table, "gradient") > 5).all()
    assert (invariance.digits(table, "output") > 5).all()


def test_plain_deep_linear_nets_collapse_to_one_dimension(finished_once):
    table = Table(measured(finished_once, "spectrum", "none"))
    assert (table.values("none", "last") < 3).all()


def test_resume_repeats_nothing_that_finished(finished):
    gone = finished / "parts" / "spectrum" / "bn.json"
    gone.unlink()
    kept = {p: p.stat().st_mtime_ns for p in finished.rglob("parts/*/*.json")}
    before = steady(finished)
    assert main(["run", "--resume", "--out", str(finished), "--jobs", "1"]) == 0
    assert gone.is_file() and steady(finished) == before
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_part_that_was_cut_off_by_a_kill_is_measured_again(finished):
    # Parts are written in one step, so a kill leaves none rather than half of one.
    (finished / "parts" / "spectrum" / ".bn.json.1.tmp").write_text('{"rows": [')
    assert main(["run", "--resume", "--out", str(finished)]) == 0


@pytest.mark.parametrize("content", [b"", b'{"rows": [', b"[]", b"\xff", b"{}"])
def test_a_part_that_was_damaged_is_measured_again(finished, content):
    path, before = finished / "parts" / "spectrum" / "bn.json", steady(finished)
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
        ('"spectrum"', "3"),
        ('"preset"', '"presets"'),
    ],
)
def test_options_that_were_changed_by_hand_are_refused(finished, capsys, old, new):
    path = finished / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
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
        (finished / "parts" / "spectrum" / "bn.json").unlink()
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
    path = finished / "runs.jsonl"
    if damage == "a line":
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    else:
        (finished / "timings.json").unlink()
    assert main(["report", str(finished)]) == 4
    error = capsys.readouterr().err
    assert ("runs.jsonl' must be as" if damage == "a line" else "timings.json") in error
    assert error.count("\n") == 1
    assert not (finished / "report.html").exists()


def test_resume_with_another_seed_is_refused(finished, capsys):
    assert main(["run", "--resume", "--out", str(finished), "--seed", "7"]) == 2
    assert "`--seed` must stay 0" in capsys.readouterr().err


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
        ("verdicts.json", '"supported"', '"proved"', "Invalid enum value 'proved'"),
        ("effects.json", '"mean": ', '"mean": 1', "does not follow"),
        ("runs.jsonl", '"start": 1', '"start": 0', "lacks"),
        ("runs.jsonl", '"schema": 1', '"schema": 2', "line 1: Invalid enum value 2"),
        ("runs.jsonl", '"metrics": {"', '"metrics": {"x', "no verdicts follow from"),
        ("summary.csv", "spectrum", "spektrum", "does not follow"),
    ],
)
def test_verify_finds_what_was_changed(finished, capsys, name, old, new, message):
    path = finished / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert main(["verify", str(finished)]) == 4
    error = capsys.readouterr().err
    assert message in error or f"{name}' must be as the run wrote it" in error
    (finished / "checksums" / "files.json").unlink()  # results of a run before it
    assert main(["verify", str(finished)]) == 4
    assert message in capsys.readouterr().err


def test_a_part_that_was_changed_is_measured_again(finished):
    before = steady(finished)
    path = finished / "parts" / "spectrum" / "bn.json"
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


def test_the_report_needs_nothing_else(reported):
    text = (reported / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\((?!#)", text)
    assert "<script" not in text
    assert text.index("forest-") < text.index("<section")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for name in ("forest", *NAMES):
        assert (reported / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert (reported / "figures" / f"{name}.svg").is_file()


@pytest.mark.parametrize("width", [390, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(reported, tmp_path, width, scheme):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    size = [f"--window-size={max(width, 500)},900", f"--screenshot={picture}"]
    page = (reported / "report.html").as_uri()
    command = [chromium, *options, *dark, *size, page]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    paper = pixels[5, 5].mean()
    assert (paper < 0.2) if scheme == "dark" else (paper > 0.9)
    assert pixels.std() > 0.03  # Text and figures, not an empty page.


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
    assert 1 <= len(list(out.rglob("parts/*/*.json"))) < 6
    monkeypatch.undo()
    assert main(["run", "--resume", "--out", str(out)]) == 0


def test_the_command_of_an_experiment_reproduces_it():
    one = study.chosen(("spectrum",))[0]
    assert store.command(one, {"preset": "quick", "seed": 3}) == (
        "python -m experiments run spectrum --preset quick --seed 3"
    )
