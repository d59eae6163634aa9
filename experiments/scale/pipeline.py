"""Batches by Grain: the same ones, in the same order, on any number of processes.

Every process goes through the same stream of positions and reads, of each batch, only
its own rows. The state of an iterator is then the number of batches so far, the same on
all processes, and can be restored on another number of them.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.common.errors import UserError, package
from experiments.scale import augment, config
from experiments.scale.sources import Source, open_source

_BATCHES_AHEAD = 4
# For ever; Grain's own endless repetition overflows for small batches.
_EXAMPLES = 2**48


def train_batches(
    data: config.Data,
    *,
    batch_size: int,
    seed: int,
    process: int,
    processes: int,
    source: Source | None = None,
) -> Any:
    """The rows of one process of an endless stream of shuffled training batches.

    Each epoch is shuffled anew and contains each example once; a batch may contain the
    end of one and the beginning of the next.

    Args:
        data: the options.
        batch_size: examples of a batch, of all processes together.
        seed: of the order and of the augmentation.
        process: number of this process, from 0.
        processes: number of processes; divides the batch size. Process p has the rows
            [p * batch_size / processes, (p + 1) * batch_size / processes).
        source: the examples, if they are open already.

    Returns:
        A `grain.DatasetIterator` of {"image": (rows, height, width, channels), float32;
        "label": (rows,), int32}. `get_state()` is a dictionary to store as JSON.

    Raises:
        UserError: if an option does not fit, or the data cannot be read.
    """
    grain = package("grain", what="Training", extra="data")
    rows = rows_of(batch_size, process=process, processes=processes)
    if source is None:
        source = open_source(data, split="train")

    def read(step: int, positions: np.ndarray) -> dict[str, np.ndarray]:
        images, labels = _examples(source, positions[rows], data)
        start = step * batch_size + rows.start
        images = augment.training(data, images, seed=seed, start=start)
        return {"image": images, "label": labels}

    # 32 bits are what Grain takes as a seed.
    order = grain.MapDataset.range(len(source)).seed(seed % 2**32).shuffle()
    stream = order.repeat(max(_EXAMPLES // len(source), 1))
    batches = stream.batch(batch_size).map_with_index(read)
    return iter(batches.to_iter_dataset(_read_options(grain, data)))


def eval_batches(
    data: config.Data,
    *,
    batch_size: int,
    process: int,
    processes: int,
    source: Source | None = None,
) -> Iterable[dict[str, np.ndarray]]:
    """The rows of one process of one pass over the evaluation examples, in order.

    Args:
        data, batch_size, process, processes, source: as in `train_batches`.

    Returns:
        An iterable of batches as in `train_batches`, the same number of them and of the
        same shape on all processes, with "mask": (rows,), bool. The last batch is
        filled up with rows that the mask says not to count: over all processes, each
        example counts exactly once.
    """
    grain = package("grain", what="Training", extra="data")
    rows = rows_of(batch_size, process=process, processes=processes)
    if source is None:
        source = open_source(data, split="eval")
    shape = (data.image_size, data.image_size, data.channels)

    def read(step: int) -> dict[str, np.ndarray]:
        positions = np.arange(rows.start, rows.stop) + step * batch_size
        mask = positions < len(source)
        image = np.zeros((len(mask), *shape), np.float32)
        label = np.zeros(len(mask), np.int32)
        if mask.any():
            images, label[mask] = _examples(source, positions[mask], data)
            image[mask] = augment.evaluation(data, images)
        return {"image": image, "label": label, "mask": mask}

    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(read)
    return batches.to_iter_dataset(_read_options(grain, data))


def rows_of(batch_size: int, *, process: int, processes: int) -> slice:
    """The rows of a batch that are those of a process."""
    if batch_size < 1 or batch_size % processes:
        raise UserError(
            f"`--batch-size` must be a multiple of the {processes} processes, got "
            f"{batch_size}. Pass another batch size."
        )
    share = batch_size // processes
    return slice(process * share, (process + 1) * share)


def _examples(
    source: Source, positions: np.ndarray, data: config.Data
) -> tuple[list[np.ndarray], np.ndarray]:
    examples = [source[position] for position in positions]
    for position, example in zip(positions, examples, strict=True):
        if example["label"] >= data.classes:
            raise UserError(
                f"`--classes` must be larger than every label, got {data.classes} and "
                f"the label {example['label']} of example {position}. Pass the number "
                "of classes of the data."
            )
    labels = np.array([example["label"] for example in examples], np.int32)
    return [example["image"] for example in examples], labels


def _read_options(grain: Any, data: config.Data) -> Any:
    ahead = _BATCHES_AHEAD if data.loader_threads else 0
    return grain.ReadOptions(
        num_threads=data.loader_threads, prefetch_buffer_size=ahead
    )
