"""The SHA-256 of what a run wrote: checkpoints, and files that do not change.

checksums/STEP.json   every file of the checkpoint of a step
checksums/files.json  `config.json` from the beginning, results at the end
"""

import hashlib
import shutil
import sys
from pathlib import Path

import msgspec

from experiments.common import files, records
from experiments.common.errors import UserError

_FOLDER, _FILES = "checksums", "files.json"


class _Sums(msgspec.Struct):
    sha256: dict[str, str]


def seal(out: Path, *names: str) -> None:
    """Remembers files of a run that will not change any more."""
    (out / _FOLDER).mkdir(exist_ok=True)
    sums = _sealed(out) | {name: _sha256(out / name) for name in names}
    files.write_json(out / _FOLDER / _FILES, {"sha256": sums})


def unseal(out: Path, *names: str) -> None:
    """Forgets files of a run that change after all."""
    sums = {k: v for k, v in _sealed(out).items() if k not in names}
    files.write_json(out / _FOLDER / _FILES, {"sha256": sums})


def check(out: Path, *names: str) -> None:
    """Raises `DamagedError` for a file that differs from the one that was sealed."""
    sealed = _sealed(out)
    for name in names:
        try:
            same = name not in sealed or sealed[name] == _sha256(out / name)
        except OSError:
            same = False
        if not same:
            raise records.DamagedError(
                f"'{out / name}' must be as the run wrote it, but is damaged, missing "
                "or changed: its SHA-256 is another one."
            )


def steps(out: Path) -> list[int]:
    """Returns the steps that have a checkpoint, whole or not, the newest first."""
    folder = out / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def write(out: Path, step: int) -> None:
    """Writes the checksums of a new checkpoint, and drops those of old ones."""
    (out / _FOLDER).mkdir(exist_ok=True)
    sums = {"sha256": _below(out / "checkpoints" / str(step))}
    files.write_json(out / _FOLDER / f"{step}.json", sums)
    kept = {*map(str, steps(out)), Path(_FILES).stem}
    for path in (out / _FOLDER).glob("*.json"):
        if path.stem not in kept:
            path.unlink()


def usable(out: Path, step: int) -> bool:
    """Tells whether the checkpoint of `step` is whole."""
    try:
        expected = records.read(out / _FOLDER / f"{step}.json", _Sums)
        return expected.sha256 == _below(out / "checkpoints" / str(step))
    except (OSError, records.DamagedError):
        return False


def newest_usable(out: Path) -> int:
    """Returns the step of the newest whole checkpoint, -1 if there is no checkpoint.

    Those that are not whole are put into `damaged`, with a note on stderr.

    Raises:
        UserError: if there are checkpoints, but none is whole.
    """
    found = steps(out)
    for step in found:
        if usable(out, step):
            return step
        _put_aside(out, step)
    if found:
        raise UserError(
            f"A checkpoint in '{out}' must be whole, but none of {len(found)} is; they "
            "are in 'damaged' now. Put a copy back, or start a new run."
        )
    if any(path.stem.isdecimal() for path in (out / _FOLDER).glob("*.json")):
        raise UserError(
            f"'{out}' must have the checkpoints that it has checksums of, but they are "
            "gone. Put a copy back, or start a new run in another `--out`."
        )
    return -1


def _put_aside(out: Path, step: int) -> None:
    target = out / "damaged" / str(step)
    print(
        f"note: the checkpoint of step {step} is not whole: moved to '{target}', the "
        "one before is used",
        file=sys.stderr,
    )
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    (out / "checkpoints" / str(step)).rename(target)


def _sealed(out: Path) -> dict[str, str]:
    path = out / _FOLDER / _FILES
    return records.read(path, _Sums).sha256 if path.is_file() else {}


def _below(top: Path) -> dict[str, str]:
    """The SHA-256 of every file below `top`, by its path from there."""
    paths = [path for path in sorted(top.rglob("*")) if path.is_file()]
    return {str(path.relative_to(top)): _sha256(path) for path in paths}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
