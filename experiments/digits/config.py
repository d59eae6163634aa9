"""The options of `train`: their types, their limits, and how a run remembers them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from msgspec import Meta

from experiments.common import remembered
from experiments.common.data import TRAIN_SIZES
from experiments.common.errors import UserError
from experiments.common.options import Positive, Rate, Seed, check_limits

_NOT_REMEMBERED = ("config", "out", "resume")


@dataclass(frozen=True)
class TrainConfig:
    """Trains a small residual net with and without a normalization.

    With `--config` cifar10-resnet20, cifar10-resnet56 or imagenet-resnet50: a ResNet,
    on one device or on many hosts; see `--config NAME --help`.
    """

    config: Literal["digits"] = "digits"
    """This configuration; the others have options of their own."""
    norm: Literal["bn", "gn", "ln", "in", "none"] = "bn"
    """Normalization to compare with none; `none` trains the plain net alone."""
    data: Literal["digits", "mnist1d"] = "digits"
    """Data set."""
    steps: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 500
    """Optimizer steps."""
    batch_size: Annotated[int, Meta(ge=2)] = 64
    """Examples a step, for each start."""
    lr: Rate = 0.1
    """Learning rate, constant, the same with and without normalization."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "momentum"
    """Optimizer; momentum is SGD with momentum 0.9."""
    seed: Seed = 0
    """Seed of splits, initial weights and order of the data."""
    starts: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Random starts, trained side by side."""
    eval_every: Positive = 10
    """Steps between two evaluations on the whole test split."""
    out: Path = Path("runs/train")
    """Directory of the run, new or empty unless `--resume` is given."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in `--out` with the options it began with."""


def check(config: TrainConfig) -> None:
    """Raises `UserError` for an option out of its limits."""
    check_limits(config)
    size = TRAIN_SIZES[config.data]
    if config.batch_size > size:
        raise UserError(
            f"`--batch-size` must be at most {size}, the size of the training split of "
            f"{config.data}, got {config.batch_size}. Pass a smaller one."
        )


def to_json(config: TrainConfig) -> dict:
    """Returns what `config.json` holds: every option but `out` and `resume`."""
    options = dataclasses.asdict(config)
    return {key: options[key] for key in options if key not in _NOT_REMEMBERED}


def fingerprint(config: TrainConfig) -> str:
    """Returns a hash that two configs share if they describe the same run."""
    return remembered.fingerprint(to_json(config))


def stored(config: TrainConfig) -> TrainConfig:
    """Returns the options that the run in `config.out` began with."""
    path = config.out / "config.json"
    advice = "Start a new run without `--resume`, in another `--out`."
    if not path.is_file():
        raise UserError(
            f"`--out` must hold a run to resume, got '{config.out}'. {advice}"
        )
    names = to_json(TrainConfig())
    found = remembered.read(path, TrainConfig, names=names, check=check, advice=advice)
    return dataclasses.replace(found, out=config.out)
