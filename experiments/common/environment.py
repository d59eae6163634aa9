"""Says what a run was made with: processor, versions, commit; no host name, no path."""

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
_VECTOR = ("amx", "asimd", "avx", "f16c", "fma", "sse", "ssse", "sve")


def describe() -> dict:
    """Returns the environment as JSON-ready values."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        **_processor(Path("/proc/cpuinfo")),
        "cpu_count": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "implementation": os.environ.get("JAXBN_IMPLEMENTATION"),
        "implementations": jaxbn.implementations(),
        "jaxbn": jaxbn.__version__,
        "packages": {name: version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "x64": jax.config.values["jax_enable_x64"],
        "sources": sources("jaxbn", "experiments"),
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


def differences(path: Path) -> list[str]:
    """Returns the names in which `path` differs from this environment, sorted.

    A commit may: of what it holds, only the sources of the packages compute.
    """
    try:
        found, here = records.read(path, dict[str, Any]), describe()
    except records.DamagedError:
        return [path.name]
    names = (found.keys() | here.keys()) - {"git"}
    return sorted(name for name in names if found.get(name) != here.get(name))


def is_that_of(path: Path) -> bool:
    """Tells whether `path` holds the description of this environment."""
    return not differences(path)


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


def _processor(path: Path) -> dict:
    """Model and vector instructions: the same program computes other bits with others.

    Of Linux; elsewhere what Python knows, and no instructions.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in reversed(lines))
    found = {name.strip(): value.strip() for name, _, value in pairs}
    flags = found.get("flags", found.get("Features", "")).split()
    return {
        "processor": found.get("model name") or platform.processor() or None,
        "instructions": sorted(flag for flag in flags if flag.startswith(_VECTOR)),
    }


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
