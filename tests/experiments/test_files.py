"""The directory of a run: locked, begun all or nothing, told in one line."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as program
from experiments.common import environment, files, records, supervise
from experiments.common.errors import UserError
from experiments.common.lock import locked

TOP = Path(__file__).parents[2]
HOLD = (
    "import sys; from pathlib import Path; from experiments.common.lock import locked\n"
    + ("with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()")
)


def test_a_directory_is_locked_until_its_process_is_killed(tmp_path):
    out = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="must not be in use by another process"):
            locked(out).__enter__()
        holder.kill()
        holder.wait()
    with locked(out):
        (out / "config.json").touch()
    assert out.is_dir()


def test_a_directory_in_which_no_run_has_begun_is_left_as_it_was(tmp_path):
    with locked(tmp_path / "new" / "run"):
        pass
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert {path.name for path in tmp_path.iterdir()} == {"new", "thesis.tex"}


@pytest.mark.parametrize("successes", range(3))
def test_a_run_begins_with_all_of_its_files_or_none(successes, tmp_path, monkeypatch):
    write, written = files.write_bytes, []

    def full(path, content):
        if len(written) == successes:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        environment.begin(tmp_path, {"steps": 1})
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.ENOSPC, None), (errno.EROFS, "name"), (errno.EACCES, "name")],
)
def test_what_a_file_system_refuses_is_one_line(number, name, monkeypatch, capsys):
    def refused(*arguments):
        raise OSError(number, "Because", name)

    monkeypatch.setattr(program, "_run", refused)
    assert program.main(["train"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert "but: Because. Make room" in errors and (name is None or "'name'" in errors)
    monkeypatch.setattr(program, "_run", lambda *_: {}["mistake"])
    with pytest.raises(KeyError):
        program.main(["train"])


def test_several_processes_are_run_by_a_parent(monkeypatch):
    monkeypatch.delenv(supervise._MARK, raising=False)
    monkeypatch.setattr(supervise, "supervise", lambda arguments: arguments)
    words = ["train", "--lr", "1", "--coordinator=h:1"]
    assert program.main(words) == words


def test_the_same_rows_are_the_same_bytes_at_any_time_and_under_any_name(tmp_path):
    rows, paths = [{"a": 1.5}], (tmp_path / "one.gz", tmp_path / "two.gz")
    for path in paths:
        files.write_lines(path, rows)
    one, two = (path.read_bytes() for path in paths)
    assert one == two and one[4:8] == bytes(4)  # the time
    assert records.lines(paths[0], dict) == (rows, "")


@pytest.mark.parametrize("cut", [1, 8, 12])
def test_compressed_rows_that_were_cut_off_are_damaged(tmp_path, cut):
    path = tmp_path / "rows.gz"
    files.write_lines(path, [{"a": 1.5}])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(records.DamagedError, match="must be whole"):
        records.lines(path, dict)


@pytest.mark.parametrize("name", ["processor", "instructions", "sources"])
def test_an_environment_names_what_differs(tmp_path, name):
    files.write_json(tmp_path / "a.json", environment.describe() | {"git": None})
    assert environment.is_that_of(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text()) | {name: "other"}
    files.write_json(tmp_path / "a.json", content)
    assert environment.differences(tmp_path / "a.json") == [name]


def test_a_processor_is_read_from_linux_or_left_out(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name : A\nflags : fpu avx2 fma\n\nmodel name : A\n")
    found = environment._processor(path)
    assert found == {"processor": "A", "instructions": ["avx2", "fma"]}
    assert environment._processor(tmp_path / "none")["instructions"] == []
