"""The data of the claims: splits, IDX files, order of the batches."""

import dataclasses
import gzip
import random
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import mnist1d.data
import numpy as np
import pytest

from experiments.claims.lab import signals, splits
from experiments.claims.lab.engine import Plan, advance, batches, begin, train
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.norms import batch, none
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
        ({"steps": 6, "evals": 6, "batch": 9999}, "`batch` must be at most 300"),
    ],
)
def test_numbers_of_a_plan_must_fit(numbers, message):
    with pytest.raises(ValueError, match=message):
        train(Plan(mlp(none()), small(), [{"lr": 0.1}], seed=3, **numbers))


def small(*, starts=1, seed=0):
    size = {"train": 300, "validation": 20, "test": 30}
    return splits.mnist1d(starts=starts, seed=seed, **size)


def test_every_start_and_every_seed_has_rows_of_its_own():
    found = small(starts=3)
    rows = np.concatenate([part.reshape(-1) for part in found[2:]])
    assert len(set(rows.tolist())) == len(rows) == len(found.labels) == 1050
    every = np.concatenate([found.inputs, small(starts=3, seed=1).inputs])
    assert len({row.tobytes() for row in every}) == 2100
    np.testing.assert_array_equal(np.bincount(found.labels), 105)


def test_signals_are_those_of_the_package(monkeypatch):
    rng, size = np.random.default_rng(3), 20
    drawn = signals.Drawn(
        rng.integers(36, 61, size),
        rng.random(size),
        rng.integers(48, size=size),
        *rng.standard_normal((2, size, 72)),
        rng.random(size),
    )
    chosen = signals.templates()[np.arange(size) % 10]
    found = signals.transformed(chosen, drawn)
    arguments = mnist1d.data.get_dataset_args()
    times = mnist1d.data.get_templates()["t"]
    for n in range(size):
        numbers = iter([(drawn.padding[n] - 35.5) / 25, drawn.scale[n], drawn.shear[n]])
        noises = iter([drawn.smooth[n], drawn.rough[n]])
        monkeypatch.setattr(np.random, "rand", lambda it=numbers: next(it))
        monkeypatch.setattr(np.random, "randn", lambda *shape, it=noises: next(it))
        monkeypatch.setattr(np.random, "choice", lambda _, k=drawn.shift[n]: k)
        expected, _ = mnist1d.data.transform(chosen[n], times, arguments)
        np.testing.assert_allclose(found[n], expected, atol=1e-12)


def test_every_pass_takes_every_row_once():
    found = small(starts=2)
    plan = Plan(mlp(none()), found, [{"lr": 0.1}], steps=18, batch=32, evals=2, seed=3)
    order = batches(plan)
    assert order.shape == (2, 2, 9, 32)
    first = order[0].reshape(-1)[: 9 * 32]
    assert len(set(first.tolist())) == 9 * 32
    assert set(first.tolist()) <= set(found.train[0].tolist())
    np.testing.assert_array_equal(order, batches(plan))


@pytest.mark.slow
def test_early_steps_are_evaluated_one_by_one_and_change_nothing():
    numbers = {"steps": 6, "batch": 32, "evals": 3, "seed": 3}
    plan = Plan(mlp(none()), small(), [{"lr": 0.1}], **numbers)
    late, early = train(plan), train(dataclasses.replace(plan, early=2))
    assert early.steps.tolist() == [1, 2, 3, 4, 6] and late.steps.tolist() == [2, 4, 6]
    losses = (one.series["validation_loss"][0, 0] for one in (early, late))
    np.testing.assert_allclose(next(losses)[[1, 3, 4]], next(losses), rtol=1e-5)


def stepped(norm, rows, *, lr=0.1, before=0, **options):
    """The weights of the first layer after one step on `rows`, as the step `before`."""
    numbers = {"steps": 4, "batch": 8, "evals": 1, "seed": 3, **options}
    plan = Plan(mlp(norm, widths=(8,)), small(), [{"lr": lr}], **numbers)
    state, given = begin(plan)
    state = jax.tree.map(lambda x: x[0, 0], state)._replace(step=before)
    given = given._replace(noise=given.noise[0], hyper={"lr": lr})
    state, _ = advance(plan, state, given, jnp.asarray(rows)[None], 1)
    return state.model.params["dense"][0]


@pytest.mark.slow
def test_rows_that_do_not_count_are_only_in_the_statistics():
    one, other = np.arange(8), np.r_[:4, 10:14]

    def differ(norm, counted):
        found = [stepped(norm, rows, counted=counted) for rows in (one, other)]
        return np.abs(np.subtract(*found)).max()

    assert differ(none(), 4) == 0
    assert differ(none(), None) > 1e-4 and differ(batch(), 4) > 1e-4


def test_a_cooled_rate_falls_to_zero():
    rows = np.arange(8)
    found = stepped(none(), rows, cooled=True, before=3)
    np.testing.assert_allclose(found, stepped(none(), rows, lr=0.025), rtol=1e-6)


def generators():
    return random.getstate(), *np.random.get_state()[1:]


@pytest.mark.slow
def test_mnist1d_leaves_the_global_generators_alone():
    random.seed(7)
    np.random.seed(7)
    before = generators()
    both = data.load("mnist1d", starts=2, seed=0)
    np.testing.assert_equal(generators(), before)
    assert both.inputs.shape == (5000, 40, 1)
    assert both.train.shape == (2, data.TRAIN_SIZES["mnist1d"])


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
