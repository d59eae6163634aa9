"""The data of the claims: training, validation and test rows for each start."""

import functools
import itertools
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common import data, idx
from experiments.common.errors import UserError

_VALIDATION = {"digits": 288, "mnist1d": 1000}
_NEW_SEED, _NEW_TEST = 43, 4000
_NEW_CHECKSUM = "2092b074b22e306baefecfbdac51ca357ccf347488a30a100933f2d5b6caed51"
_ONE_AT_A_TIME = threading.Lock()  # The generator uses global random numbers.
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


def digits(*, starts: int, seed: int) -> Splits:
    """Scikit-learn's digits, 64 pixels from 0 to 1: 1149, 288 and 360 rows.

    The learning rate of an arm is chosen on the validation rows and its result read
    from the test rows; every start has its own split.
    """
    found = data.load("digits", starts=starts, seed=seed)
    size = _VALIDATION["digits"]
    inputs = found.inputs.reshape(len(found.inputs), -1)
    rows = found.train[:, size:], found.train[:, :size], found.test
    return Splits(inputs, found.labels, *rows)


def mnist1d(*, starts: int, seed: int) -> Splits:
    """MNIST-1D: 4000 training rows, its 1000 test rows for validation, 4000 new ones.

    The published test set is too small to tell two nets apart (the standard error of
    one accuracy is 1.5 points), so the test rows are a larger draw from the same
    generator with another seed.
    """
    del seed  # The rows are the same for every start.
    inputs, labels, new_inputs, new_labels = _mnist1d()
    train, first = 4000, _VALIDATION["mnist1d"]
    bounds = np.cumsum([0, train, first, len(new_labels)])
    rows = [
        np.tile(np.arange(low, high, dtype=np.int32), (starts, 1))
        for low, high in itertools.pairwise(bounds)
    ]
    both = np.concatenate([inputs, new_inputs]), np.concatenate([labels, new_labels])
    return Splits(*both, *rows)


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


def _mnist1d() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with _ONE_AT_A_TIME:
        return _made()


@functools.cache
def _made() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    old = data.load("mnist1d", starts=1, seed=0)
    new = data.generated(seed=_NEW_SEED, num_samples=_NEW_TEST, train_split=1.0)
    inputs, labels = new["x"].astype(np.float32), new["y"].astype(np.int32)
    data.check("Test rows of `mnist1d`", inputs, labels, wanted=_NEW_CHECKSUM)
    return old.inputs[..., 0], old.labels, inputs, labels
