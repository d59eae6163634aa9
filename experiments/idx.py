"""IDX files, as of MNIST: images and their labels, plain or compressed (.gz)."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from experiments.errors import UserError

_UNSIGNED_BYTES = 8


def labelled(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads `PREFIX-images-idx3-ubyte` and `PREFIX-labels-idx1-ubyte`.

    Returns:
        Images, (examples, height, width), and labels, (examples,), both uint8.

    Raises:
        UserError: if a file is missing or damaged, or they do not match.
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
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"`{path}` must be a readable file, got: {error}. Copy it again."
        ) from error
    start = 4 + 4 * rank
    if len(raw) < start or raw[:4] != bytes([0, 0, _UNSIGNED_BYTES, rank]):
        raise UserError(
            f"`{path}` must begin as an IDX file of bytes with {rank} dimensions, got "
            f"{raw[:4].hex(' ') or 'nothing'}. Copy the file again."
        )
    shape = np.frombuffer(raw, ">u4", rank, 4).tolist()
    if len(raw) - start != math.prod(shape):
        raise UserError(
            f"`{path}` must have {math.prod(shape)} values after its header, got "
            f"{len(raw) - start}. Copy the file again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
