"""What the user can put right is told in one line, and no file is touched."""

import json
import shutil

import pytest
from sweeps import but_slow
from train_runs import TINY, contents, run_train

from experiments.__main__ import main
from experiments.common import checkpoint, loop
from experiments.digits import results

pytestmark = pytest.mark.usefixtures("small_net")


def assert_refused(code, capsys, *parts):
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--lr -1", "`--lr` must be above 0, got -1.0."),
        ("--lr nan", "`--lr` must be finite, got nan."),
        ("--lr inf", "`--lr` must be finite, got inf."),
        ("--steps 0", "`--steps` must be at least 1, got 0."),
        ("--steps 3000000000", "`--steps` must be at most 2147483647, got 3000000000."),
        ("--steps 1.5", "--steps"),
        ("--steps", "--steps"),
        ("--batch-size 1", "`--batch-size` must be at least 2, got 1."),
        ("--batch-size 1438", "`--batch-size` must be at most 1437"),
        ("--data mnist1d --batch-size 4001", "`--batch-size` must be at most 4000"),
        ("--starts 0", "`--starts` must be at least 1, got 0."),
        ("--eval-every 0", "`--eval-every` must be at least 1, got 0."),
        ("--seed -1", "`--seed` must be at least 0, got -1."),
        ("--norm batch", "invalid choice 'batch' for argument '--norm'"),
        ("--data cifar", "invalid choice 'cifar' for argument '--data'"),
        ("--optimizer lion", "invalid choice 'lion' for argument '--optimizer'"),
        ("--epochs 3", "Unrecognized options: --epochs, 3."),
        ("--resume", "must hold a run to resume"),
    ],
)
def test_a_bad_option_is_refused(options, part, tmp_path, capsys):
    code = run_train("--out", tmp_path / "new", *options.split())
    assert_refused(code, capsys, part)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("command", ["fly", "--steps"])
def test_an_unknown_command_is_refused(command, capsys):
    assert_refused(main([command]), capsys, f"got '{command}'")


def test_help_names_every_option(capsys):
    assert run_train("--help") == 0
    out = capsys.readouterr().out
    for name in ("norm", "data", "steps", "batch-size", "lr", "optimizer", "resume"):
        assert f"--{name}" in out


@pytest.mark.parametrize("options", [(), ("--steps", 6), ("--lr", "0.2")])
def test_a_directory_with_a_run_is_not_overwritten(options, finished, capsys):
    before = contents(finished)
    code = run_train("--out", finished, *options)
    assert_refused(code, capsys, "must not hold a run yet", "`--resume`")
    assert contents(finished) == before


def test_a_directory_with_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    code = run_train("--out", tmp_path)
    assert_refused(code, capsys, "must be new or empty")
    assert contents(tmp_path) == {"thesis.tex": b"x"}


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_in_place_of_the_directory_is_refused(below, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code = run_train("--out", f"{tmp_path}/file{below}", *TINY)
    assert_refused(code, capsys, "must be a directory that can be written")
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--lr 0.2", "`--lr` must stay 0.1,"),
        ("--steps 5", "`--steps` must stay 6,"),
        ("--norm none", "`--norm` must stay bn,"),
        ("--batch-size 0", "`--batch-size` must be at least 2, got 0."),
    ],
)
def test_a_run_keeps_its_options(options, part, finished, capsys):
    before = contents(finished)
    code = run_train("--resume", "--out", finished, *options.split())
    assert_refused(code, capsys, part)
    assert contents(finished) == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '"steps"',
        lambda config: config | {"steps": "many"},
        lambda config: config | {"steps": -1},
        lambda config: config | {"norm": "batch"},
        lambda config: config | {"more": 1},
    ],
)
def test_a_broken_config_is_refused(content, finished, capsys):
    path = finished / "config.json"
    (finished / "checksums" / "files.json").unlink()  # the form is what counts here
    if not isinstance(content, str):
        content = json.dumps(content(json.loads(path.read_text())))
    path.write_text(content)
    before = contents(finished)
    code = run_train("--resume", "--out", finished)
    assert_refused(code, capsys, "config.json' must hold the options of a run")
    assert contents(finished) == before


def test_a_config_that_was_changed_is_refused(finished, capsys):
    path = finished / "config.json"
    path.write_text(path.read_text().replace('"eval_every": 2', '"eval_every": 3'))
    before = contents(finished)
    code = run_train("--resume", "--out", finished)
    assert_refused(code, capsys, "config.json' must be as the run wrote it")
    assert contents(finished) == before


def unhurried(out):
    """The rows of a run, without times."""
    rows = [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]
    return sorted(json.dumps(row | {"seconds": 0}) for row in rows)


def truncated(folder):
    for path in folder.rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:9])


def without_states(folder):
    shutil.rmtree(folder / "state")


def changed(folder):
    path = folder / "about" / "metadata"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5', 1))


def without_checksums(folder):
    (folder.parents[1] / "checksums" / f"{folder.name}.json").unlink()


@pytest.mark.parametrize(
    "damage",
    but_slow(
        (truncated, without_states, changed, without_checksums, shutil.rmtree),
        (truncated, without_states, without_checksums, shutil.rmtree),
    ),
)
def test_a_damaged_checkpoint_costs_steps_and_nothing_else(damage, finished, capsys):
    want = unhurried(finished)
    damage(finished / "checkpoints" / "6")
    (finished / "summary.json").unlink()
    assert run_train("--resume", "--out", finished) == 0
    said = "the checkpoint of step 6 is not whole" in capsys.readouterr().err
    assert said == (damage is not shutil.rmtree)
    assert unhurried(finished) == want


def test_a_run_without_a_whole_checkpoint_is_refused(finished, capsys):
    for step in ("0", "6"):
        changed_or_cut = finished / "checkpoints" / step / "about" / "metadata"
        changed_or_cut.write_text("{}")
    assert run_train("--resume", "--out", finished) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and "must be whole, but none of 2 is" in error
    assert run_train("--resume", "--out", finished) == 2
    assert "but they are gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    but_slow(
        ("metrics.jsonl", "summary.json", "curves.png"), ("summary.json", "curves.png")
    ),
)
def test_results_that_were_changed_are_written_again(name, finished, capsys):
    before = contents(finished)
    path = finished / name
    path.write_bytes(path.read_bytes().replace(b"9", b"8"))
    assert run_train("--resume", "--out", finished) == 0
    assert f"{name}' must be as the run wrote it" in capsys.readouterr().err
    assert {**contents(finished), "curves.png": before["curves.png"]} == {
        **before,
        "checksums/files.json": contents(finished)["checksums/files.json"],
    }


def test_the_checkpoint_of_another_run_is_refused(finished, capsys):
    path = finished / "config.json"
    (finished / "checksums" / "files.json").unlink()
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    before = contents(finished)
    code = run_train("--resume", "--out", finished)
    assert_refused(code, capsys, "is of another one")
    assert contents(finished) == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["first checkpoint", "checkpoint", "results"])
def test_a_full_disk_is_refused_and_the_run_goes_on_later(
    where, finished, tmp_path, monkeypatch, capsys
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    out, save = tmp_path / "full", checkpoint.save

    def save_the_first(run, step, *rest, **options):
        if step == 0 and where != "first checkpoint":
            return save(run, step, *rest, **options)
        raise checkpoint.SaveError("`--out` can be written, but: No space left. Do.")

    with monkeypatch.context() as patch:
        # It would end this process, too.
        patch.setattr(loop.processes, "leave", lambda message, code: None)
        if where != "results":
            patch.setattr(checkpoint, "save", save_the_first)
        else:
            patch.setattr(results.figures, "render", full)
        assert run_train("--out", out, *TINY) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "can be written" in errors[-1] and "No space left" in errors[-1]
    assert run_train("--resume", "--out", out) == 0


def test_the_checkpoint_of_another_net_is_refused(finished, monkeypatch, capsys):
    monkeypatch.undo()  # the net is now the large one
    before = contents(finished)
    code = run_train("--resume", "--out", finished)
    assert_refused(code, capsys, "The checkpoint of step 6")
    assert contents(finished) == before
