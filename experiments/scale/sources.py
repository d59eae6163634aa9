"""Data sets with random access, from files or from the libraries of the ecosystem.

Every source has a length and gives, for a position, an image and its label. Nothing is
downloaded but by `hf` without `--data-dir`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.common.errors import UserError, first_line, package
from experiments.scale import config, images, source_files
from experiments.scale.source_files import Split, inside, reading

Example = dict[str, Any]


class Source(Protocol):
    """A data set: `source[i]` for i in [0, len(source)), from any thread.

    An example is {"image": uint8 (height, width, channels), "label": int}; images may
    have any size.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def open_source(data: config.Data, *, split: Split) -> Source:
    """Opens the examples to train on, or those to evaluate on.

    Raises:
        UserError: if a package, a directory or a file is missing or damaged.
    """
    source = _OPEN[data.source](data, split)
    if not len(source):
        raise UserError(
            f"`--source {data.source}` must have examples to {_PURPOSE[split]}, got "
            "none. Pass another `--data-dir` or `--dataset`."
        )
    return source


@dataclass(frozen=True)
class Fake:
    """Images that are made up: a pattern for each class, and noise.

    Attributes:
        examples: how many there are.
        first: number of the first one, so that splits differ.
        shape: height, width and channels.
        classes: number of classes; example i is of class i modulo it.
    """

    examples: int
    first: int
    shape: tuple[int, int, int]
    classes: int

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index):
        number = self.first + inside(index, len(self))
        label = number % self.classes
        bits = np.random.Philox(key=np.array([number, 1], np.uint64))
        noise = np.random.Generator(bits).random(self.shape, np.float32)
        image = 255 * (0.4 * _pattern(label, self.shape) + 0.6 * noise)
        return {"image": image.astype(np.uint8), "label": label}


@functools.cache
def _pattern(label: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A coarse chessboard of colours in [0, 1), stretched over the image."""
    bits = np.random.Philox(key=np.array([label, 0], np.uint64))
    cells = np.random.Generator(bits).random((4, 4, shape[2]), np.float32)
    rows, columns = (np.arange(n) * 4 // n for n in shape[:2])
    return cells[rows[:, None], columns]


def _fake(data: config.Data, split: Split) -> Source:
    train, evaluate = data.fake_train_examples, data.fake_eval_examples
    shape = (data.image_size, data.image_size, data.channels)
    count, first = (train, 0) if split == "train" else (evaluate, train)
    return Fake(max(count, 0), first, shape, data.classes)


@dataclass(frozen=True)
class Table:
    """Rows of a library, whatever its names for the image and the label.

    Attributes:
        rows: random access to dictionaries.
        image, label: the keys.
        channels: channels of images that have to be decoded.
        where: the data set, in messages.
    """

    rows: Any
    image: str
    label: str
    channels: int
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        index = inside(index, len(self))
        with reading(f"Row {index} of {self.where}", "Correct the data set."):
            row = self.rows[index]
            return images.example(
                row[self.image], row[self.label], channels=self.channels
            )


def _tfds(data: config.Data, split: Split) -> Source:
    library = package("tensorflow_datasets", what="`--source tfds`", extra="tfds")
    name, split_name = _dataset(data), "train"
    try:
        info = library.builder(name, data_dir=data.data_dir).info
        if split == "eval":
            split_name = _evaluation(info.splits, f"`--dataset {name}`")
        rows = library.data_source(name, split=split_name, data_dir=data.data_dir)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"`--dataset` must be a data set that TFDS has prepared for random access, "
            f"got {name!r} in {data.data_dir}: {first_line(error)}. Prepare it with "
            f"tfds build {name} --file_format=array_record."
        ) from error
    keys = info.supervised_keys or ("image", "label")
    return Table(rows, keys[0], keys[1], data.channels, f"`--dataset {name}`")


def _hf(data: config.Data, split: Split) -> Source:
    library = package("datasets", what="`--source hf`", extra="hf")
    try:
        if data.data_dir is not None:
            splits = library.load_from_disk(str(data.data_dir))
        else:
            splits = library.load_dataset(_dataset(data))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "`--data-dir` or `--dataset` must name a data set of Hugging Face, got "
            f"{data.data_dir or data.dataset}: {first_line(error)}. Write one with "
            "DatasetDict.save_to_disk, or pass the name of one on the hub."
        ) from error
    what = f"`--source hf` {data.data_dir or data.dataset}"
    if not isinstance(splits, Mapping):
        raise UserError(
            f"{what} must have splits, got a single table. Save a DatasetDict."
        )
    name = "train" if split == "train" else _evaluation(splits, what)
    if name not in splits:
        raise UserError(
            f"{what} must have the split 'train', got {sorted(splits)}. Rename one."
        )
    rows = splits[name]
    image = _key(rows.column_names, ("image", "img"), what)
    label = _key(rows.column_names, ("label", "labels", "fine_label"), what)
    images.pillow()  # which the library asks, too
    rows = rows.select_columns([image, label])
    return Table(rows, image, label, data.channels, what)


def _evaluation(splits: Any, what: str) -> str:
    for name in ("validation", "test"):
        if name in splits:
            return name
    raise UserError(
        f"{what} must have the split 'validation' or 'test', got {sorted(splits)}. "
        "Pass another data set."
    )


def _key(names: list[str], wanted: tuple[str, ...], what: str) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UserError(
        f"{what} must have a column named one of {list(wanted)}, got {sorted(names)}. "
        "Rename the column."
    )


def _dataset(data: config.Data) -> str:
    if data.dataset is None:
        raise UserError(
            f"`--dataset` must be given with `--source {data.source}`, got none. Pass "
            "the name of a data set, for example cifar10."
        )
    return data.dataset


_OPEN: dict[str, Callable[[config.Data, Split], Source]] = {
    "fake": _fake,
    "cifar-binary": source_files.cifar_binary,
    "mnist-idx": source_files.mnist_idx,
    "arrayrecord": source_files.array_record,
    "tfds": _tfds,
    "hf": _hf,
}
_PURPOSE = {"train": "train on", "eval": "evaluate on"}
