"""Data sets in files of this machine: CIFAR, MNIST and ArrayRecord."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.common import idx
from experiments.common.errors import UserError, first_line, package
from experiments.scale import config, images

Split = Literal["train", "eval"]

_CIFAR = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "eval": ["test_batch.bin"],
}
_CIFAR_RECORD = 1 + 3 * 32 * 32
_MNIST = {"train": "train", "eval": "t10k"}


@dataclass(frozen=True)
class Arrays:
    """Parts of a data set in memory, or mapped into it.

    Attributes:
        images: parts of uint8 (examples, height, width, channels) or, if
            `channels_first`, (examples, channels, height, width).
        labels: their labels, (examples,).
        channels_first: how images are stored.
    """

    images: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    channels_first: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = inside(index, len(self))
        part = 0
        while row >= len(self.labels[part]):
            row -= len(self.labels[part])
            part += 1
        image = self.images[part][row]
        image = image.transpose(1, 2, 0) if self.channels_first else image
        return {
            "image": np.ascontiguousarray(image),
            "label": int(self.labels[part][row]),
        }


def cifar_binary(data: config.Data, split: Split) -> Arrays:
    """CIFAR-10, binary version: `data_batch_1.bin` to `_5.bin`, and `test_batch.bin`.

    A record is a byte of the label and 3,072 bytes of the image: red, green and blue,
    each row by row (https://www.cs.toronto.edu/~kriz/cifar.html).
    """
    folder = directory(data)
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    parts, labels = [], []
    for name in _CIFAR[split]:
        path = _existing(folder / name, "cifar-binary")
        if not path.stat().st_size or path.stat().st_size % _CIFAR_RECORD:
            raise UserError(
                f"`{path}` must consist of records of {_CIFAR_RECORD} bytes, got "
                f"{path.stat().st_size} bytes. Copy the file again."
            )
        try:
            records = np.memmap(path, np.uint8, "r").reshape(-1, _CIFAR_RECORD)
        except OSError as error:
            raise UserError(
                f"`{path}` must be a readable file, got: {first_line(error)}. Copy it "
                "again."
            ) from error
        if records[:, 0].max() > 9:
            raise UserError(
                f"`{path}` must have labels from 0 to 9, got {records[:, 0].max()}. "
                "Pass the binary version of CIFAR-10."
            )
        parts.append(records[:, 1:].reshape(-1, 3, 32, 32))
        labels.append(records[:, 0])
    return Arrays(tuple(parts), tuple(labels), channels_first=True)


def mnist_idx(data: config.Data, split: Split) -> Arrays:
    """MNIST and its kin: IDX files of images and labels, plain or compressed (.gz)."""
    grey, labels = idx.labelled(directory(data), _MNIST[split])
    return Arrays((grey[..., None],), (labels,))


@dataclass(frozen=True)
class ArrayRecords:
    """Records of `write_array_record` in one or more files, in order of their names."""

    records: Any
    channels: int
    where: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = inside(index, len(self))
        with reading(f"Record {index} of `{self.where}`", "Write it again."):
            record = _unpacked(self.records[index])
            image, shape = record["image"], record.get("shape")
            if shape is not None:
                shape = images.shape_of(shape)
                image = np.frombuffer(image, np.uint8).reshape(shape)
            return images.example(image, record["label"], channels=self.channels)


def _unpacked(raw: bytes) -> dict[str, Any]:
    import msgpack

    # A byte can be a list, which takes 64: of those in each other nothing bounds them.
    record = msgpack.unpackb(
        raw, max_array_len=8, max_map_len=16, list_hook=_flat, object_hook=_flat
    )
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} instead of a map")
    return record


def _flat(value: Any) -> Any:
    items = value.values() if isinstance(value, dict) else value
    if any(isinstance(item, dict | type(value)) for item in items):
        raise ValueError("lists in lists or maps in maps")
    return value


def array_record(data: config.Data, split: Split) -> ArrayRecords:
    """All of `train*.arrayrecord`, or of `eval*.arrayrecord`."""
    pattern = f"{split}*.arrayrecord"
    paths = sorted(map(str, directory(data).glob(pattern)))
    if not paths:
        raise UserError(
            f"`--data-dir` must have files {pattern}, got none in {data.data_dir}. "
            "Write them with experiments.scale.source_files.write_array_record."
        )
    library = _array_record("data_source")
    try:
        records = library.ArrayRecordDataSource(paths)
        len(records)
    except Exception as error:
        raise UserError(
            f"`{data.data_dir}/{pattern}` must be whole ArrayRecord files, got: "
            f"{first_line(error)}. Write them again."
        ) from error
    return ArrayRecords(records, data.channels, f"{data.data_dir}/{pattern}")


def write_array_record(path: Path, examples: Iterable[dict[str, Any]]) -> None:
    """Writes a file for `--source arrayrecord`.

    A record is a msgpack map: "label" is an integer; "image" is the bytes of a JPEG or
    PNG file or, with "shape": [height, width, channels], its uint8 values.

    Args:
        path: the file, `train*.arrayrecord` or `eval*.arrayrecord`.
        examples: dictionaries of "label" and "image", which is the bytes of a file or
            uint8 (height, width, channels).

    Raises:
        ValueError: if an image or a label is something else.
    """
    import msgpack

    # Groups of one record: random access reads no more than it is asked for.
    writer = _array_record("module").ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        image, record = example["image"], {"label": images.class_of(example["label"])}
        if not isinstance(image, bytes):
            image = images.checked(image)
            record |= {"shape": list(image.shape)}
            image = image.tobytes()
        writer.write(msgpack.packb(record | {"image": image}))
    writer.close()


def directory(data: config.Data) -> Path:
    """The directory of the files, which exists."""
    if data.data_dir is None or not data.data_dir.is_dir():
        raise UserError(
            f"`--data-dir` must be a directory with `--source {data.source}`, got "
            f"{data.data_dir}. Pass the directory of the files."
        )
    return data.data_dir


def inside(index: Any, size: int) -> int:
    """The index, of which sources must not take negative ones."""
    index = int(index)
    if not 0 <= index < size:
        raise IndexError(f"`index` must be in [0, {size}), got {index}.")
    return index


@contextlib.contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Around what reads an example: every error is one of the user's data.

    Args:
        what: which example.
        advice: what to do.
    """
    try:
        yield
    except Exception as error:  # of a library, which may raise anything
        raise UserError(
            f"{what} must be an image and its label, got: {first_line(error)}. {advice}"
        ) from error


def _existing(path: Path, source: str) -> Path:
    if not path.is_file():
        raise UserError(
            f"`--data-dir` must contain {path.name} for `--source {source}`, got none "
            f"in {path.parent}. Pass the directory with the unpacked files."
        )
    return path


def _array_record(part: str) -> Any:
    name = f"array_record.python.array_record_{part}"
    return package(name, what="`--source arrayrecord`", extra="data")
