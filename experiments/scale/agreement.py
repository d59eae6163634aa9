"""Checks that all processes of a run agree, before anything begins."""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from experiments.common import environment, processes
from experiments.common.errors import UserError, writing
from experiments.common.options import flag
from experiments.scale import connection
from experiments.scale.config import ScaleConfig
from experiments.scale.options import flat
from experiments.scale.sources import Source

# Paths may differ between machines; what lies there is compared instead.
_OWN = ("coordinator", "process_id", "out", "data_dir", "compilation_cache")
_SOME = 16
_FOR_A_FILE = 5.0  # seconds that a network file system may need to show a file


def check(config: ScaleConfig) -> None:
    """Raises `AgreedError` unless all processes would do the same in one place."""
    if connection.alone(config.devices):
        return
    _check_shared(config.out)
    _check_same(_options(config) | _program())


def _check_same(what: Mapping[str, object]) -> None:
    """Raises `AgreedError` unless all processes give the same values.

    Args:
        what: names, as a message shows them, to values that JSON can hold.
    """
    first, *others = map(json.loads, processes.gather(json.dumps(what)))
    for number, other in enumerate(others, 1):
        for name in first:
            if first[name] != other.get(name):
                raise processes.AgreedError(
                    f"{name} must be the same in all processes, got {first[name]} in "
                    f"process 0 and {other.get(name)} in process {number}. Start all "
                    "of them alike."
                )


def _options(config: ScaleConfig) -> dict[str, object]:
    """Returns the options that decide what a run computes, and when it saves."""
    given = {k: v for k, v in flat(config).items() if k not in _OWN}
    return {f"`{flag(name)}`": value for name, value in given.items()}


def _program() -> dict[str, object]:
    """Returns what computes: the code, its packages, and the settings of JAX."""
    found = environment.describe()
    versions = found["packages"].items()
    return {f"The version of {name}": version for name, version in versions} | {
        "The code of jaxbn": found["sources"],
        "The backend of JAX": found["backend"],
        "JAX_ENABLE_X64": found["x64"],
        "JAX_DEFAULT_MATMUL_PRECISION": found["matmul_precision"],
        "XLA_FLAGS": found["xla_flags"],
        "What jaxbn.implementations() gives": found["implementations"],
        "JAXBN_IMPLEMENTATION": found["implementation"],
    }


def check_data(config: ScaleConfig, sources: Iterable[Source]) -> None:
    """Raises `AgreedError` unless all processes have the same examples."""
    if connection.alone(config.devices):
        return
    with processes.all_or_none():
        found = _data(sources)
    _check_same({"The data": found})


def _data(sources: Iterable[Source]) -> str:
    """A hash of some examples."""
    total = hashlib.sha256()
    for source in sources:
        total.update(str(len(source)).encode())
        for position in np.linspace(0, len(source) - 1, _SOME).astype(int):
            example = source[int(position)]
            total.update(example["image"].tobytes())
            total.update(str((example["image"].shape, example["label"])).encode())
    return total.hexdigest()[:12]


def _check_shared(out: Path) -> None:
    """Raises `AgreedError` unless `out` is one directory for all."""
    path, token = out / ".token", uuid.uuid4().hex
    try:
        with processes.all_or_none(), writing(out):
            if processes.is_first():
                path.write_text(token)
        wanted = processes.gather(token)[0]
        with processes.all_or_none():
            _find(path, wanted)
    finally:
        if processes.is_first():
            path.unlink(missing_ok=True)


def _find(path: Path, wanted: str) -> None:
    end = time.monotonic() + _FOR_A_FILE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if path.read_text() == wanted:
                return
        time.sleep(0.1)
    raise UserError(
        f"`--out` must be one directory that all processes share, got '{path.parent}', "
        "where process 0 does not write. Pass one on a shared file system."
    )
