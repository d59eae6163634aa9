"""The data of the claims: splits, IDX files, order of the batches."""

import functools
import gzip
import random
import struct
import tracemalloc

import mnist1d.data
import numpy as np
import pytest

from experiments.claims.lab import splits
from experiments.claims.lab.engine import Plan, batches, train
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.norms import none
from experiments.common import data, idx
from experiments.common.errors import UserError


def write_mnist(directory, *, packed=False):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 100), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(directory / f"{prefix}-images-idx3-ubyte", images, packed=packed)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        write_idx(directory / f"{prefix}-labels-idx1-ubyte", labels, packed=packed)


def write_idx(path, values, *, packed=False):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content = header + values.tobytes()
    path = path.with_name(f"{path.name}.gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read(tmp_path, packed):
    write_mnist(tmp_path, packed=packed)
    found = splits.mnist(tmp_path, starts=2, seed=0)
    assert found.inputs.shape == (120, 784) and found.inputs.max() == 1
    assert [part.shape for part in found[2:]] == [(2, 90), (2, 10), (2, 20)]


@pytest.mark.parametrize("damage", ["missing", "cut", "kind"])
def test_damaged_idx_files_are_named(tmp_path, damage):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        splits.mnist(tmp_path, starts=1, seed=0)


def labels(count, largest=9):
    return np.minimum(np.arange(count), largest).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-labels-idx1-ubyte", labels(99), "as many labels as images, got 99 and"),
        ("train-labels-idx1-ubyte", labels(100, 10), "labels from 0 to 9, got 10"),
        ("t10k-labels-idx1-ubyte", labels(21), "as many labels as images, got 21 and"),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((20, 8, 8), np.uint8),
            "images of one size, got",
        ),
    ],
)
def test_images_and_labels_that_do_not_match_are_refused(
    tmp_path, name, values, message
):
    write_mnist(tmp_path)
    write_idx(tmp_path / name, values)
    with pytest.raises(UserError, match=message):
        splits.mnist(tmp_path, starts=1, seed=0)


def test_more_values_than_the_header_says_are_refused(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\1")
    with pytest.raises(UserError, match="must have 100 values after its header, got"):
        splits.mnist(tmp_path, starts=1, seed=0)


def test_too_few_images_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((20, 28, 28), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels(20))
    with pytest.raises(UserError, match="at least 100 training images and"):
        splits.mnist(tmp_path, starts=1, seed=0)


def test_damaged_compressed_data_are_refused(tmp_path):
    write_mnist(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-60:-20] = b"\xff" * 40  # zlib.error, not one of gzip
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ubyte.gz` must be a readable file"):
        splits.mnist(tmp_path, starts=1, seed=0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"steps": 20, "evals": 6, "batch": 8}, "`steps` must be a positive multiple"),
        ({"steps": 0, "evals": 1, "batch": 8}, "`steps` must be a positive multiple"),
        ({"steps": 6, "evals": 6, "batch": 9999}, "`batch` must be at most 1149"),
    ],
)
def test_numbers_of_a_plan_must_fit(numbers, message):
    found = splits.digits(starts=1, seed=0)
    with pytest.raises(ValueError, match=message):
        train(Plan(mlp(none()), found, [{"lr": 0.1}], seed=3, **numbers))


def test_rows_of_a_start_do_not_overlap():
    found = splits.digits(starts=3, seed=0)
    for parts in zip(*found[2:], strict=True):
        rows = np.concatenate(parts)
        assert len(set(rows.tolist())) == len(rows) == 1797


def test_every_pass_takes_every_row_once():
    found = splits.digits(starts=2, seed=0)
    plan = Plan(mlp(none()), found, [{"lr": 0.1}], steps=34, batch=64, evals=2, seed=3)
    order = batches(plan)
    assert order.shape == (2, 2, 17, 64)
    first = order[0].reshape(-1)[: 17 * 64]
    assert len(set(first.tolist())) == 17 * 64
    assert set(first.tolist()) <= set(found.train[0].tolist())
    np.testing.assert_array_equal(order, batches(plan))


def generators():
    return random.getstate(), *np.random.get_state()[1:]


@pytest.mark.slow
def test_mnist1d_leaves_the_global_generators_alone_and_its_test_rows_are_new(
    monkeypatch,
):
    # The package takes seconds for each data set, and the published one is the same.
    made = mnist1d.data.make_dataset
    published = functools.cache(made)

    def make(options=None):
        if options is not None:
            return made(options)
        random.seed(1)  # what is remembered leaves them alone
        np.random.seed(1)
        return published()

    monkeypatch.setattr(mnist1d.data, "make_dataset", make)
    random.seed(7)
    np.random.seed(7)
    before = generators()
    both = data.load("mnist1d", starts=2, seed=0)
    np.testing.assert_equal(generators(), before)
    assert both.inputs.shape == (5000, 40, 1)
    assert both.train.shape == (2, data.TRAIN_SIZES["mnist1d"])
    found = splits.mnist1d(starts=2, seed=0)
    np.testing.assert_equal(generators(), before)
    assert [len(part[0]) for part in found[2:]] == [4000, 1000, 4000]
    old = {row.tobytes() for row in found.inputs[:5000]}
    assert not any(row.tobytes() in old for row in found.inputs[5000:])


def header(*shape, kind=8):
    return struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape), *shape)


IMAGE = header(1, 28, 28) + bytes(784)
BOMB = header(2**21, 32, 32)
HOSTILE = {
    "nothing": (b"", "must begin as an IDX file .* got nothing"),
    "a cut header": (header(1, 28), "must begin as an IDX file"),
    "other types": (header(1, 28, 28, kind=13), "got 00 00 0d 03"),
    "too few values": (IMAGE[:-1], "must have 784 values .* got 783"),
    "too many values": (IMAGE + b"1", "must have 784 values .* got more"),
    "no height": (header(3, 0, 28), r"images with pixels, got the size \[0, 28\]"),
    "no width": (header(3, 28, 0), r"images with pixels, got the size \[28, 0\]"),
    "2 GiB announced": (BOMB, "must have 2147483648 values .* got 0"),
    "10^12 announced": (header(10**6, 10**3, 10**3), "at most 2 GiB .* got 10{12}"),
    "2^96 announced": (header(*[2**32 - 1] * 3), "at most 2 GiB of values, got 79"),
}
PACKED = {
    **{name: (gzip.compress(raw), text) for name, (raw, text) in HOSTILE.items()},
    "2 GiB announced": (gzip.compress(BOMB), r"to less than 1 / 200, got \d+ bytes"),
    "a bomb": (gzip.compress(BOMB + bytes(2**24)), r"to less than 1 / 200, got \d+"),
    "a bomb after the values": (gzip.compress(IMAGE + bytes(2**24)), "got more"),
    "no gzip": (IMAGE, "must be a readable file"),
    "a cut checksum": (gzip.compress(IMAGE)[:-2], "not one whole gzip stream"),
    "a cut stream": (gzip.compress(IMAGE)[:-10], "not one whole gzip stream"),
    "another checksum": (gzip.compress(IMAGE)[:-8] + bytes(8), "must be a readable"),
    "more behind": (gzip.compress(IMAGE) + b"garbage", "not one whole gzip stream"),
    "two streams": (gzip.compress(IMAGE) * 2, "not one whole gzip stream"),
    "values in two": (
        gzip.compress(IMAGE[:100]) + gzip.compress(IMAGE[100:]),
        "not one whole gzip stream",
    ),
}
CASES = {
    **{name: ("", *case) for name, case in HOSTILE.items()},
    **{f"{name}, packed": (".gz", *case) for name, case in PACKED.items()},
}


@pytest.mark.parametrize(("end", "content", "message"), CASES.values(), ids=CASES)
def test_hostile_files_are_refused_before_they_take_memory(
    tmp_path, end, content, message
):
    (tmp_path / f"train-images-idx3-ubyte{end}").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            splits.mnist(tmp_path, starts=1, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 2**20


def test_files_of_labels_in_order_may_be_small(tmp_path):
    many = 2**20
    values = header(many) + bytes(many)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(values))
    assert len(idx._read(tmp_path / "train-labels-idx1-ubyte", rank=1)) == many
