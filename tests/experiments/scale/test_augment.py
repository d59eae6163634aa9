"""What is random depends on seed and position; the rest is the arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.errors import UserError
from experiments.scale import augment, config

SMALL = config.Data(image_size=8)
LARGE = config.Data(image_size=72)


def some(count, *shape, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return list(values)


@given(
    seed=st.integers(0, 2**70),
    start=st.integers(0, 2**40),
    split=st.integers(1, 6),
    numbers=st.sampled_from([4, 24]),
)
def test_numbers_of_an_example_do_not_depend_on_its_neighbours(
    seed, start, split, numbers
):
    whole = augment.uniforms(seed, start, 7, numbers)
    parts = [
        augment.uniforms(seed, start, split, numbers),
        augment.uniforms(seed, start + split, 7 - split, numbers),
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert (augment.uniforms(seed + 1, start, 7, numbers) != whole).all()


def test_numbers_are_uniform():
    numbers = augment.uniforms(0, 5, 4000, 24)
    assert numbers.shape == (4000, 24) and len(np.unique(numbers)) == numbers.size
    counts = np.histogram(numbers, 16, (0, 1))[0]
    assert np.abs(counts / numbers.size - 1 / 16).max() < 5 / np.sqrt(16 * numbers.size)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_any_division_of_the_stream_gives_the_same_images(data):
    images = some(6, data.image_size, data.image_size + 5, 3)
    whole = augment.training(data, images, seed=3, start=10)
    assert whole.shape == (6, data.image_size, data.image_size, 3)
    assert whole.dtype == np.float32 and whole.flags["C_CONTIGUOUS"]
    for start, stop in ((0, 2), (2, 6)):
        part = augment.training(data, images[start:stop], seed=3, start=10 + start)
        np.testing.assert_array_equal(part, whole[start:stop])
    other = augment.training(data, images, seed=4, start=10)
    assert (other != whole).any((1, 2, 3)).sum() >= 4


def test_small_images_are_crops_of_the_padded_ones():
    (image,) = some(1, 8, 8, 3)
    padded = augment.normalized(SMALL, np.pad(image, ((4, 4), (4, 4), (0, 0))))
    places = {
        (top, left, flipped): padded[top : top + 8, left : left + 8][:, ::flipped]
        for top in range(9)
        for left in range(9)
        for flipped in (1, -1)
    }
    got = augment.training(SMALL, [image] * 300, seed=0, start=0)
    found = [
        next(place for place, crop in places.items() if np.array_equal(crop, one))
        for one in got
    ]
    for values, all_of_them in zip(zip(*found, strict=True), (9, 9, 2), strict=True):
        assert len(set(values)) == all_of_them


def test_digits_are_not_flipped():
    digits = replace(SMALL, source="mnist-idx", channels=1)
    image = np.arange(8, dtype=np.uint8)[None, :, None].repeat(8, 0) + 1
    crops = augment.training(digits, [image] * 50, seed=0, start=0)
    steps = np.diff(crops[:, 4, :, 0])
    rising = augment.normalized(digits, np.ones(1)) - augment.normalized(
        digits, np.zeros(1)
    )
    # Falling only to the border of zeros.
    assert (
        (steps > -1e-3) | (steps < -1.5 * rising) | (crops[:, 4, 1:, 0] == crops.min())
    ).all()
    assert (steps > rising / 2).any(1).sum() > 40


def test_large_crops_stay_inside_and_vary():
    rows, columns = np.mgrid[0:100, 0:140].astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    got = augment.training(LARGE, [image] * 200, seed=0, start=0)
    mean, std = (np.array(v) for v in augment._IMAGENET)
    values = (got * std + mean) * 255
    assert values[..., 0].max() <= 99.01 and values[..., 1].max() <= 139.01
    height = np.ptp(values[..., 0], (1, 2)) / 99
    width = np.ptp(values[..., 1], (1, 2)) / 139
    area = height * width
    assert area.min() > 0.04 and area.max() > 0.8 and area.std() > 0.15
    flipped = values[:, 36, 0, 1] > values[:, 36, -1, 1]
    assert 0.35 < flipped.mean() < 0.65


def test_an_image_too_thin_for_every_crop_is_cropped_in_the_center():
    data = replace(LARGE, source="mnist-idx")
    (image,) = some(1, 400, 3, 3)
    got = augment.training(data, [image], seed=0, start=0)
    np.testing.assert_array_equal(got, augment.evaluation(data, [image]))


def test_evaluation_crops_the_center_and_training_without_augmentation_does_so_too():
    image = np.zeros((160, 288, 3), np.uint8)
    image[7:153, 71:217] = 255  # 7/8 of the shorter side, and what the filter adds
    got = augment.evaluation(LARGE, [image])
    white = augment.normalized(LARGE, np.full((1, 72, 72, 3), 255, np.uint8))
    np.testing.assert_array_equal(got, white)
    plain = replace(LARGE, augment=False)
    np.testing.assert_array_equal(
        augment.training(plain, [image], seed=0, start=0), got
    )
    (small,) = some(1, 8, 8, 3)
    np.testing.assert_array_equal(
        augment.evaluation(SMALL, [small])[0], augment.normalized(SMALL, small)
    )


@pytest.mark.parametrize(
    ("data", "mean", "std"),
    [
        (SMALL, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        (LARGE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (replace(SMALL, channels=1), (0.1307,), (0.3081,)),
        (replace(SMALL, channels=2), (0.5, 0.5), (0.25, 0.25)),
    ],
)
def test_normalization_is_that_of_the_data_sets(data, mean, std):
    image = some(1, 8, 8, data.channels)[0]
    want = (image.astype(np.float64) / 255 - mean) / std
    got = augment.normalized(data, image)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def test_grey_images_become_coloured_and_other_channels_are_refused():
    (image,) = some(1, 8, 8, 1)
    got = augment.with_channels(image, SMALL)
    np.testing.assert_array_equal(got, np.repeat(image, 3, -1))
    with pytest.raises(UserError, match=r"images, 4, got 3. Pass --channels 4"):
        augment.with_channels(np.zeros((8, 8, 4), np.uint8), SMALL)


def test_other_sizes_are_resized():
    image = np.full((16, 20, 2), 7, np.uint8)
    got = augment.resized(image, 8)
    assert got.shape == (8, 8, 2) and (got == 7).all()
