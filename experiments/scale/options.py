"""Checks the options, and remembers those of a run in its `config.json`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from experiments.common import checkpoint, errors, records, remembered
from experiments.common.errors import UserError
from experiments.common.options import check_limits, flag
from experiments.scale.config import CONFIGS, ScaleConfig
from experiments.scale.metrics import Written

# What a session may change without making it another run; some of it is remembered.
_FREE = {
    "session": ("checkpoint_every", "keep", "log_every"),
    "devices": ("parallel", "model_devices"),
}
_REMEMBERED = {name for names in _FREE.values() for name in names}


def check(config: ScaleConfig) -> None:
    """Raises `UserError` for an option that is wrong whatever the machine."""
    if config.config not in CONFIGS:
        known = ", ".join(["digits", *CONFIGS])
        raise UserError(
            f"`--config` must be one of {known}, got {config.config!r}. "
            "Pass one of them."
        )
    check_limits(config)
    if config.devices.model_devices > 1 and config.devices.parallel != "jit":
        raise UserError(
            "`--model-devices` must be 1 with `--parallel "
            f"{config.devices.parallel}`, got {config.devices.model_devices}. "
            "Pass `--parallel jit`."
        )
    _check_profile(config)


def _check_profile(config: ScaleConfig) -> None:
    steps = profiled_steps(config.session.profile)
    if steps and steps.start >= config.optimizer.steps:
        raise UserError(
            f"`--profile` must start before the {config.optimizer.steps} steps are "
            f"taken, got {config.session.profile!r}. Pass a smaller START."
        )


def profiled_steps(text: str | None) -> range:
    """Returns the steps of START:COUNT, none for None."""
    if text is None:
        return range(0)
    start, _, count = text.partition(":")
    if not (start.isdecimal() and count.isdecimal() and int(count) > 0):
        raise UserError(
            f"`--profile` must be START:COUNT, two whole numbers, got {text!r}. "
            "Pass 10:5 for five steps after the tenth."
        )
    return range(int(start), int(start) + int(count))


def flat(config: ScaleConfig) -> dict[str, Any]:
    """Returns every option by its name on the command line, with underscores."""
    options = {}
    for name, value in dataclasses.asdict(config).items():
        options.update(value if isinstance(value, dict) else {name: value})
    return options


def to_json(config: ScaleConfig) -> dict[str, Any]:
    """Returns what `config.json` holds: everything but this session and machine."""
    parts = (dataclasses.fields(getattr(config, part)) for part in _FREE)
    forgotten = {field.name for part in parts for field in part} - _REMEMBERED
    kept = {key: value for key, value in flat(config).items() if key not in forgotten}
    return {k: str(v) if isinstance(v, Path) else v for k, v in kept.items()}


def placement(config: ScaleConfig) -> dict[str, Any]:
    """Returns how the work is spread, which decides the last bits of the results."""
    return {name: getattr(config.devices, name) for name in _FREE["devices"]}


def again(config: ScaleConfig) -> str:
    """Returns the command line that continues a run, with all it needs here."""
    words: list[object] = ["--out", config.out]
    default = ScaleConfig()
    for part in _FREE:
        own, usual = getattr(config, part), getattr(default, part)
        for name in (field.name for field in dataclasses.fields(own)):
            value = getattr(own, name)
            free = name not in (*_REMEMBERED, "out", "resume", "profile")
            if free and value != getattr(usual, name):
                words += [flag(name)] + ([] if value is True else [value])
    own = ", each process with its own `--process-id`"
    line = errors.again("train", *words)
    return line + (own if config.devices.coordinator else "")


def fingerprint(config: ScaleConfig) -> str:
    """Returns a hash that two configs share if they describe the same run."""
    return remembered.fingerprint(_decisive(config))


def stored(config: ScaleConfig) -> ScaleConfig:
    """Returns the options of the run in `config.out`, or `config` if there is none."""
    path = config.out / "config.json"
    if not path.is_file():
        return _as_default(config)
    found = remembered.read(
        path,
        ScaleConfig,
        names=to_json(ScaleConfig()),
        check=check,
        advice="Put a copy back, or start a new run in another `--out`.",
    )
    now = {}
    for part, names in _FREE.items():
        kept = {name: getattr(getattr(found, part), name) for name in names}
        now[part] = dataclasses.replace(getattr(config, part), **kept)
    return _as_default(dataclasses.replace(found, **now))


def check_unchanged(config: ScaleConfig, old: ScaleConfig) -> None:
    """Raises `UserError` if an option differs from the one the run began with."""
    remembered.check_unchanged(config.out, _decisive(old), _decisive(config))


def _decisive(config: ScaleConfig) -> dict[str, Any]:
    """The options that make a run another one."""
    free = (*_REMEMBERED, "data_dir", "loader_threads")
    return {k: v for k, v in to_json(config).items() if k not in free}


def named(arguments: list[str]) -> str | None:
    """Returns the configuration that a command line names, itself or by its run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--out", nargs="?", type=Path)
    parser.add_argument("--resume", nargs="?", const="yes")
    given, _ = parser.parse_known_args(arguments)
    if given.config or not given.resume or not given.out:
        return given.config
    try:
        content = records.read(given.out / "config.json", remembered.Options)
        return str(content["config"])
    except (records.DamagedError, KeyError):
        return None


def _as_default(config: ScaleConfig) -> ScaleConfig:
    # The command line is read once more on top of it, `--resume` included.
    session = dataclasses.replace(config.session, resume=False)
    return dataclasses.replace(config, session=session)


class Beside(msgspec.Struct):
    """The contents of a checkpoint beside the arrays.

    Attributes:
        stream: position in the training data.
        group: examples that share statistics, None for the whole batch.
        files: what the files of metrics held.
    """

    stream: dict[str, Any]
    group: int | None
    files: dict[str, Written]


def identity(config: ScaleConfig) -> checkpoint.Identity[Beside]:
    """Returns which run the checkpoints in `config.out` must be of."""
    return checkpoint.Identity(config.out, fingerprint(config), Beside)
