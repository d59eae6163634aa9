"""Says what a run was made with: versions, devices, commit; no host name, no path."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import jaxbn
from experiments.common import checksums, files, records
from experiments.common.errors import writing

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "scikit-learn",
    "mnist1d",
)


def describe() -> dict:
    """Returns the environment as JSON-ready values."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "jaxbn": jaxbn.__version__,
        "packages": {name: version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "x64": jax.config.values["jax_enable_x64"],
        "git": _git(),
    }


def begin(out: Path, options: dict) -> None:
    """Begins a run in the directory `out`: `config.json` and `environment.json`.

    Raises:
        UserError: if `out` cannot be written.
    """
    names = ("config.json", "environment.json")
    with writing(out):
        try:
            # This one first: a directory that has it can be continued.
            files.write_json(out / names[0], options)
            files.write_json(out / names[1], describe())
            checksums.seal(out, names[0])
        except OSError:
            for name in names:
                (out / name).unlink(missing_ok=True)
            raise


def is_that_of(path: Path) -> bool:
    """Tells whether `path` holds the description of this environment."""
    try:
        return records.read(path, dict[str, Any]) == describe()
    except records.DamagedError:
        return False


@functools.cache
def sources(*packages: str) -> str:
    """Returns a hash of the modules of packages; a commit changes with other files."""
    found = hashlib.sha256()
    for package in packages:
        folder = Path(str(sys.modules[package].__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            found.update(name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def version(name: str) -> str | None:
    """Returns the version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict | None:
    """Commit, and whether files differ from it; None outside a checkout."""
    # Without a lock: one left behind by a full disk would stop every later commit.
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", "--no-optional-locks", *arguments],
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
