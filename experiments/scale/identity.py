"""Which run a checkpoint is of, and what it holds beside the arrays."""

from typing import Any

import msgspec

from experiments.common import checkpoint
from experiments.scale.config import ScaleConfig
from experiments.scale.metrics import Written
from experiments.scale.options import fingerprint


class Beside(msgspec.Struct):
    """What a checkpoint holds beside the arrays.

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
