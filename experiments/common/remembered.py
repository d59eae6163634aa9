"""The options that a run began with: its `config.json`, and whether they stay."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.common import checksums, files, records
from experiments.common.errors import UserError, writing
from experiments.common.options import flag, parse

T = TypeVar("T")

_LONGER = "steps"
Options = dict[str, str | int | float | bool | None]


def read(
    path: Path,
    kind: type[T],
    *,
    names: Collection[str],
    check: Callable[[T], None],
    advice: str,
) -> T:
    """Returns the options in a `config.json` as the dataclass of a program.

    Args:
        path: the file.
        kind: the dataclass.
        names: the options that the file must have, and no others.
        check: refuses options out of their limits by `UserError`.
        advice: what to do if the file is damaged, a sentence.

    Raises:
        UserError: if it is missing, damaged, or holds other options.
    """
    try:
        checksums.check(path.parent, path.name)
        content = records.read(path, Options)
        if set(content) != set(names):
            raise UserError(f"it must have the keys {', '.join(sorted(names))}.")
        # As if it had been typed, so that the same kinds and choices are enforced.
        words = [word for option in content.items() for word in _typed(*option)]
        found = parse(kind, words, prog="python -m experiments train")
        check(found)
    except UserError as error:
        raise UserError(
            f"'{path}' must hold the options of a run, but does not: {error} {advice}"
        ) from error
    return found


def check_unchanged(
    out: Path, begun: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises `UserError` if an option differs from the one the run in `out` began with.

    Steps may become more, see `lengthen`.

    Args:
        out: directory of the run.
        begun, now: names, with underscores, to values.
    """
    for name, value in begun.items():
        if name == _LONGER and value < now[name]:
            continue
        if value != now[name]:
            raise UserError(
                f"`{flag(name)}` must stay {value}, with which the run in '{out}' "
                f"began, got {now[name]}. Leave it out, or start a new run in another "
                "`--out`."
            )


def lengthen(
    out: Path, begun: Mapping[str, Any], now: Mapping[str, Any], *results: str
) -> None:
    """Writes down that the run in `out` takes more steps, if it does.

    Its summary is that of fewer steps and goes first; files with the names of results
    may change again.
    """
    if begun.get(_LONGER) == now.get(_LONGER):
        return
    with writing(out):
        (out / "summary.json").unlink(missing_ok=True)
        # Each of these leaves a directory that can be continued.
        checksums.unseal(out, "config.json", *results)
        files.write_json(out / "config.json", dict(now))
        checksums.seal(out, "config.json")


def fingerprint(options: Mapping[str, Any]) -> str:
    """Returns a hash that two runs share if they have the same options, but steps."""
    same = {name: value for name, value in options.items() if name != _LONGER}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _typed(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), str(value)]
