"""The data of the claims: training, validation and test rows for each start."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.claims.lab import signals
from experiments.common import idx
from experiments.common.errors import UserError

_LEAST_TRAIN = 100  # several batches, and rows for validation


class Splits(NamedTuple):
    """A labelled data set and, for every start, its rows.

    Attributes:
        inputs: (examples, features), float32.
        labels: (examples,), int32, 0 to 9.
        train, validation, test: rows of each start, (starts, rows), int32.
    """

    inputs: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def mnist1d(
    *,
    starts: int,
    seed: int,
    train: int = 4000,
    validation: int = 1000,
    test: int = 2000,
) -> Splits:
    """MNIST-1D: signals of 40 numbers, drawn anew for every start.

    The learning rate of an arm is chosen on the validation rows and its result read
    from the test rows. No two starts, and no two seeds, share a row.
    """
    sizes = train, validation, test
    return _rows(*_mnist1d(starts, seed, sum(sizes)), starts, sizes)


@functools.lru_cache(maxsize=2)
def _mnist1d(starts: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = [signals.draw([seed, start], size) for start in range(starts)]
    inputs, labels = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return inputs, labels


def _rows(
    inputs: np.ndarray, labels: np.ndarray, starts: int, sizes: Sequence[int]
) -> Splits:
    every = np.arange(len(labels), dtype=np.int32).reshape(starts, -1)
    parts = np.split(every, np.cumsum(sizes)[:-1], axis=1)
    return Splits(inputs, labels, *parts)


def mnist(directory: Path, *, starts: int, seed: int, test: int = 10_000) -> Splits:
    """MNIST from the four IDX files in `directory`, plain or with `.gz`; 0 to 1.

    The last 5000 training rows, at most a tenth of them, are for validation.

    Raises:
        UserError: if a file is missing, damaged, or not of images of ten classes.
    """
    del seed
    first, second = (idx.labelled(directory, prefix) for prefix in ("train", "t10k"))
    _check_mnist(directory, first, second)
    inputs = np.concatenate([first[0], second[0]])
    inputs = inputs.reshape(len(inputs), -1).astype(np.float32) / 255
    labels = np.concatenate([first[1], second[1]]).astype(np.int32)
    train = len(first[1])
    held = min(5000, train // 10)
    bounds = [(0, train - held), (train - held, train)]
    bounds.append((train, train + min(test, len(second[1]))))
    rows = [np.tile(np.arange(*b, dtype=np.int32), (starts, 1)) for b in bounds]
    return Splits(inputs, labels, *rows)


def _check_mnist(directory: Path, *parts: tuple[np.ndarray, np.ndarray]) -> None:
    (train, _), (test, _) = parts
    if len(train) < _LEAST_TRAIN or not len(test):
        raise UserError(
            f"`--data-dir` must have at least {_LEAST_TRAIN} training images and a "
            f"test image, got {len(train)} and {len(test)} in '{directory}'. Put the "
            "four files of MNIST there."
        )
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            "`--data-dir` must have training and test images of one size, got "
            f"{train.shape[1:]} and {test.shape[1:]} in '{directory}'. Put the four "
            "files of MNIST there."
        )
    largest = max(labels.max() for _, labels in parts)
    if largest > 9:
        raise UserError(
            f"`--data-dir` must have labels from 0 to 9, got {largest} in "
            f"'{directory}'. Put the four files of MNIST there."
        )
