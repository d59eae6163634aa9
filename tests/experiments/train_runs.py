"""What the tests of `train` share: a command in process, and a small net."""

import functools
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.common.data import Data
from experiments.digits import train
from experiments.digits.config import TrainConfig, fingerprint
from experiments.digits.loop import Loop
from experiments.nets.small import ResidualNet

TINY = ("--steps", "6", "--eval-every", "2", "--starts", "2", "--batch-size", "8")


def use_small_net(patch: pytest.MonkeyPatch) -> None:
    """Replaces the net by one that compiles in a second, once for the same options."""
    patch.setattr(train, "make_loops", small_loops)


_made: dict[str, dict[str, Loop]] = {}
_make_loops = train.make_loops


def small_loops(config: TrainConfig, data: Data) -> dict[str, Loop]:
    """Returns loops with a small net; JAX knows the programs of those it has seen."""
    key = fingerprint(config)
    if key not in _made:
        with pytest.MonkeyPatch.context() as patch:
            small = functools.partial(ResidualNet, features=4, strides=(2,))
            patch.setattr(train, "ResidualNet", small)
            _made[key] = _make_loops(config, data)
    return _made[key]


def run_train(*options: object) -> int:
    """Runs `python -m experiments train` with `options` and returns the exit code."""
    return main(["train", *map(str, options)])


def contents(directory: Path) -> dict[str, bytes | None]:
    """Returns every path below `directory` with the content of the files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }
