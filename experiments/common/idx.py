"""IDX files, as of MNIST: images and their labels, plain or compressed (.gz)."""

import math
import zlib
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError

_UNSIGNED_BYTES = 8
_GZIP = 31  # what zlib calls one stream with the header and checksum of gzip
_LARGEST = 2**31
# MNIST is compressed to a fifth; labels in order may be to a thousandth.
_RATIO, _AT_ANY_RATIO = 200, 2**26


def labelled(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads `PREFIX-images-idx3-ubyte` and `PREFIX-labels-idx1-ubyte`.

    Returns:
        Images, (examples, height, width), and labels, (examples,), both uint8.

    Raises:
        UserError: if a file is missing, damaged or larger than 2 GiB, or they do not
            match.
    """
    images = _read(folder / f"{prefix}-images-idx3-ubyte", rank=3)
    labels = _read(folder / f"{prefix}-labels-idx1-ubyte", rank=1)
    if len(images) != len(labels):
        raise UserError(
            f"`{folder}` must have as many labels as images, got {len(labels)} and "
            f"{len(images)}. Copy the files of '{prefix}' again."
        )
    return images, labels


def _read(path: Path, *, rank: int) -> np.ndarray:
    # A header of two zero bytes, the type, the number of dimensions and each of them
    # as four bytes, most significant first; then the values.
    packed = path.with_name(f"{path.name}.gz")
    path = packed if packed.exists() and not path.exists() else path
    if not path.is_file():
        raise UserError(
            f"`--data-dir` must contain {path.name}, plain or with .gz, got none in "
            f"{path.parent}. Pass the directory of the IDX files."
        )
    start = 4 + 4 * rank
    try:
        with path.open("rb") as file:
            there = path.stat().st_size
            if path.suffix == ".gz":
                return _unpacked(path, file.read(min(there, _LARGEST)), start, rank)
            shape = _shape(path, file.read(start), rank)
            _check_size(path, math.prod(shape), there - start)
            return np.frombuffer(file.read(), np.uint8).reshape(shape)
    except (OSError, ValueError, zlib.error) as error:
        raise UserError(
            f"`{path}` must be a readable file, got: {error}. Copy it again."
        ) from error


def _unpacked(path: Path, packed: bytes, start: int, rank: int) -> np.ndarray:
    """The values of a compressed file, of which no more is unpacked than it tells."""
    stream = zlib.decompressobj(_GZIP)
    shape = _shape(path, stream.decompress(packed, start), rank)
    size = math.prod(shape)
    if size > _AT_ANY_RATIO and size > _RATIO * len(packed):
        raise UserError(
            f"`{path}` must not be compressed to less than 1 / {_RATIO}, got "
            f"{len(packed)} bytes for {size} values. Copy the file again."
        )
    values = stream.decompress(stream.unconsumed_tail, size + 1)
    if len(values) <= size and (not stream.eof or stream.unused_data):
        raise ValueError("not one whole gzip stream")
    _check_size(path, size, len(values))
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, rank: int) -> list[int]:
    if len(header) < 4 + 4 * rank or header[:4] != bytes([0, 0, _UNSIGNED_BYTES, rank]):
        raise UserError(
            f"`{path}` must begin as an IDX file of bytes with {rank} dimensions, got "
            f"{header[:4].hex(' ') or 'nothing'}. Copy the file again."
        )
    shape = np.frombuffer(header, ">u4", rank, 4).tolist()
    if 0 in shape[1:]:
        raise UserError(
            f"`{path}` must have images with pixels, got the size {shape[1:]}. Copy "
            "the file again."
        )
    if math.prod(shape) > _LARGEST:
        raise UserError(
            f"`{path}` must have at most 2 GiB of values, got {math.prod(shape)}. Copy "
            "the file again, or store larger data as ArrayRecord."
        )
    return shape


def _check_size(path: Path, wanted: int, found: int) -> None:
    if found != wanted:
        raise UserError(
            f"`{path}` must have {wanted} values after its header, got "
            f"{'more' if found > wanted else found}. Copy the file again."
        )
