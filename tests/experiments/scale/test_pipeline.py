"""Batches do not depend on the number of processes, and count every example once."""

import itertools
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.common.errors import UserError
from experiments.scale import config, pipeline
from experiments.scale.sources import open_source

DATA = config.Data(image_size=4, channels=1, classes=10_000, loader_threads=0)
# Few of the smallest: there Grain's shuffle takes a millisecond for each example.
sizes = st.sampled_from([2, 17, 40])
cases = st.tuples(sizes, st.integers(1, 5), st.sampled_from([1, 2, 3, 4]))


def numbered(n, *, augment=False):
    """Examples whose label is their number."""
    return replace(DATA, augment=augment, fake_train_examples=n, fake_eval_examples=n)


def streams(data, batch_size, processes, *, seed=0):
    return [
        pipeline.train_batches(
            data, batch_size=batch_size, seed=seed, process=p, processes=processes
        )
        for p in range(processes)
    ]


def together(parts):
    """The global batch from the rows of all processes."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def take(iterators, count):
    return [together([next(it) for it in iterators]) for _ in range(count)]


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.slow
@settings(max_examples=8)
@given(case=cases, seed=st.integers(0, 2**40))
def test_all_processes_together_have_the_batches_of_one(case, seed):
    n, share, processes = case
    data, batch_size = numbered(n, augment=True), share * processes
    many = take(streams(data, batch_size, processes, seed=seed), 4)
    same(many, take(streams(data, batch_size, 1, seed=seed), 4))
    image, label = many[0]["image"], many[0]["label"]
    assert image.shape == (batch_size, 4, 4, 1) and image.dtype == np.float32
    assert label.shape == (batch_size,) and label.dtype == np.int32


@settings(max_examples=5)
@given(case=cases)
def test_every_epoch_has_each_example_once_in_another_order(case):
    n, share, processes = case
    batch_size = share * processes
    count = -(-3 * n // batch_size)
    batches = take(streams(numbered(n), batch_size, processes), count)
    labels = np.concatenate([batch["label"] for batch in batches])
    epochs = labels[: 3 * n].reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(n), (3, 1)))
    if n > 10:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert tuple(epochs[0]) != tuple(range(n))


@settings(max_examples=3)  # seconds each
@given(
    case=cases,
    before=st.integers(0, 5),
    later=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_a_restored_stream_continues_also_on_other_processes(case, before, later, data):
    n, share, processes = case
    options, batch_size = numbered(n, augment=True), share * processes * later
    first = streams(options, batch_size, processes)
    take(first, before)
    states = [json.dumps(it.get_state()) for it in first]
    assert len(set(states)) == 1
    ahead = data.draw(st.integers(0, 3))
    second = streams(options, batch_size, later)
    take(second, ahead)
    for it in second:
        it.set_state(json.loads(states[0]))
    same(take(second, 3), take(first, 3))


@given(case=cases)
def test_evaluation_counts_each_example_once(case):
    n, share, processes = case
    data, batch_size = numbered(n), share * processes
    passes = [
        list(
            pipeline.eval_batches(
                data, batch_size=batch_size, process=p, processes=processes
            )
        )
        for p in range(processes)
    ]
    batches = [together(parts) for parts in zip(*passes, strict=True)]
    assert len(batches) == -(-n // batch_size)
    mask = np.concatenate([b["mask"] for b in batches])
    labels = np.concatenate([b["label"] for b in batches])
    assert mask.dtype == bool and all(len(b["mask"]) == batch_size for b in batches)
    # Of the fake examples those to evaluate on come after those to train on.
    np.testing.assert_array_equal(labels[mask], np.arange(n, 2 * n))
    assert all(np.isfinite(b["image"]).all() for b in batches)
    assert not any(b["image"][~b["mask"]].any() for b in batches)


def test_threads_change_nothing_and_the_state_is_that_of_what_was_returned():
    quick = replace(numbered(30, augment=True), loader_threads=3)
    one = streams(quick, 8, 1)
    same(take(one, 5), take(streams(replace(quick, loader_threads=0), 8, 1), 5))
    again = streams(quick, 8, 1)
    again[0].set_state(one[0].get_state())
    same(take(again, 2), take(one, 2))


def test_augmentation_is_new_in_each_epoch_and_the_seed_changes_everything():
    data = replace(numbered(8, augment=True), image_size=8, classes=10)
    first, second = take(streams(data, 8, 1), 2)
    order = [np.argsort(batch["label"]) for batch in (first, second)]
    images = [b["image"][o] for b, o in zip((first, second), order, strict=True)]
    assert (images[0] != images[1]).any((1, 2, 3)).sum() >= 6
    (other,) = take(streams(data, 8, 1, seed=1), 1)
    assert (other["label"] != first["label"]).any()


def test_an_image_and_its_label_stay_together():
    data = replace(numbered(20), classes=4)
    source = open_source(data, split="train")
    known = {source[i]["image"].tobytes(): source[i]["label"] for i in range(20)}
    for batch in itertools.islice(streams(data, 5, 1)[0], 8):
        raw = np.round((batch["image"] * 0.3081 + 0.1307) * 255).astype(np.uint8)
        for image, label in zip(raw, batch["label"], strict=True):
            assert known[image.tobytes()] == label


@pytest.mark.parametrize(
    ("options", "batch_size", "message"),
    [
        ({}, 7, "`--batch-size` must be a multiple of the 2 processes, got 7."),
        ({}, 0, "`--batch-size` must be a multiple of the 2 processes, got 0."),
    ],
)
def test_options_that_do_not_fit_are_refused(options, batch_size, message):
    data = replace(DATA, **options)
    common = {"batch_size": batch_size, "process": 0, "processes": 2}
    with pytest.raises(UserError, match=re.escape(message)):
        pipeline.train_batches(data, seed=0, **common)
    with pytest.raises(UserError, match=re.escape(message)):
        pipeline.eval_batches(data, **common)


@pytest.mark.parametrize("threads", [0, 2])
def test_labels_beyond_the_classes_are_refused(tmp_path, threads):
    record = bytes([7]) + bytes(3072)
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(record)
    data = config.Data("cifar-binary", tmp_path, classes=5, loader_threads=threads)
    (batches,) = streams(data, 2, 1)
    with pytest.raises(UserError, match=r"`--classes` must be larger .* got 5 and the"):
        next(batches)


def test_a_missing_loader_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r'pip install "jaxbn\[data\]"'):
        streams(DATA, 8, 1)
