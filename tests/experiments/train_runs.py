"""What the tests of `train` share: a command in process, and a small net."""

import functools
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.claims.lab.plan import Plan
from experiments.digits import train
from experiments.digits.config import TrainConfig
from experiments.nets.small import ResidualNet

TINY = ("--steps", "6", "--eval-every", "2", "--starts", "2", "--batch-size", "8")


def use_small_net(patch: pytest.MonkeyPatch) -> None:
    """Replaces the net by one that compiles in a second."""
    small = functools.partial(ResidualNet, features=4, strides=())
    patch.setattr(train, "ResidualNet", small)


def small_plans(config: TrainConfig) -> dict[str, Plan]:
    """Returns the plans of a run with the small net."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_net(patch)
        return train.make_plans(config)


def run_train(*options: object) -> int:
    """Runs `python -m experiments train` with `options` and returns the exit code."""
    return main(["train", *map(str, options)])


def contents(directory: Path) -> dict[str, bytes | None]:
    """Returns every path below `directory` with the content of the files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }
