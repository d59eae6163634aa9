"""Two small data sets that come with installed packages; nothing is downloaded."""

import hashlib
import importlib
import random
from typing import NamedTuple

import numpy as np

from experiments.common.errors import UserError

CLASSES = 10
TRAIN_SIZES = {"digits": 1437, "mnist1d": 4000}

_TEST_SHARE = 0.2
_CHECKSUMS = {
    "digits": "37c941c1dfbe5eb93c098146c7f6ad566a6480e8f688f743b394548870fd322d",
    "mnist1d": "f25eb3661f42a4e4895c82ca1159e109dfe133278ce7e5aab2b9d2e414d62bfb",
}


class Data(NamedTuple):
    """A labelled data set and, for every start, its split.

    Attributes:
        inputs: (examples, *space, 1), float32; space is (8, 8) or (40,).
        labels: (examples,), int32, 0 to 9.
        train: positions of the training examples, (starts, train size), int32.
        test: positions of the test examples, (starts, test size), int32.
    """

    inputs: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray


def load(name: str, *, starts: int, seed: int) -> Data:
    """Returns "digits" or "mnist1d", split for each of `starts` starts.

    Every start has its own stratified split of the digits; MNIST-1D has a published
    split, which all starts share.
    """
    inputs, labels = {"digits": _digits, "mnist1d": _mnist1d}[name]()
    check(f"`--data {name}`", inputs, labels, wanted=_CHECKSUMS[name])
    if name == "digits":
        train, test = _stratified(labels, starts=starts, seed=seed)
    else:
        train, test = _fixed(len(labels), TRAIN_SIZES[name], starts=starts)
    return Data(inputs[..., None].astype(np.float32), labels, train, test)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8) / 16, np.asarray(labels, np.int32)


def _mnist1d() -> tuple[np.ndarray, np.ndarray]:
    module = importlib.import_module("mnist1d.data")
    # The package seeds the global generators, so they are put back afterwards.
    before = random.getstate(), np.random.get_state()
    try:
        made = module.make_dataset()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    inputs = np.concatenate([made["x"], made["x_test"]])
    labels = np.concatenate([made["y"], made["y_test"]])
    return inputs, labels.astype(np.int32)


def check(what: str, inputs: np.ndarray, labels: np.ndarray, *, wanted: str) -> None:
    """Raises `UserError` if data are other ones than they were."""
    # Four decimals: the last bits of a float differ between math libraries.
    rounded = np.round(inputs.astype("<f8"), 4) + 0.0
    found = hashlib.sha256(rounded.tobytes() + labels.astype("<i4").tobytes())
    if found.hexdigest() != wanted:
        raise UserError(
            f"{what} must have the SHA-256 {wanted[:12]}..., "
            f"got {found.hexdigest()[:12]}.... "
            'Reinstall the experiments: pip install "jaxbn[experiments]".'
        )


def _stratified(
    labels: np.ndarray, *, starts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    splits = [
        train_test_split(
            np.arange(len(labels), dtype=np.int32),
            test_size=_TEST_SHARE,
            stratify=labels,
            random_state=int(
                np.random.SeedSequence([seed, start]).generate_state(1)[0]
            ),
        )
        for start in range(starts)
    ]
    train, test = zip(*splits, strict=True)
    return np.stack(train), np.stack(test)


def _fixed(size: int, train: int, *, starts: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.tile(np.arange(size, dtype=np.int32), (starts, 1))
    return positions[:, :train], positions[:, train:]
