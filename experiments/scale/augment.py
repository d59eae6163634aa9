"""Crops, flips and normalization of images, in NumPy.

What is random depends on the seed and on the position in the stream of all training
examples, not on the batch size or on the number of processes and threads.
"""

import math
from typing import Any, Literal

import numpy as np

from experiments.common.errors import UserError
from experiments.scale import config

SMALL = 64
"""Images up to this size are cropped as those of CIFAR, larger ones as ImageNet's."""

# Mean and standard deviation of the training images, of values in [0, 1].
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_MNIST = (0.1307,), (0.3081,)

_PADDING = 4
_TRIES = 10
_NUMBERS = {"small": 4, "large": 2 * _TRIES + 4}  # multiples of what a counter gives
_PER_COUNT = 4


def kind_of(data: config.Data) -> Literal["small", "large"]:
    """The way images are cropped."""
    return "small" if data.image_size <= SMALL else "large"


def uniforms(seed: int, start: int, count: int, numbers: int) -> np.ndarray:
    """Random numbers of `count` examples from position `start` of the stream.

    Philox is a function of a key and a counter: the numbers of an example are found
    without those of the examples before it.

    Args:
        seed: any number that fits 64 bits.
        start: position of the first example, from 0.
        count: examples.
        numbers: how many of each example, a multiple of 4.

    Returns:
        (count, numbers), float64 in [0, 1).

    Reference:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.
    """
    counter = np.array([start * numbers // _PER_COUNT, 0, 0, 0], np.uint64)
    key = np.array([seed % 2**64, 0], np.uint64)
    bits = np.random.Philox(counter=counter, key=key)
    return np.random.Generator(bits).random((count, numbers))


def training(
    data: config.Data, images: list[np.ndarray], *, seed: int, start: int
) -> np.ndarray:
    """Crops, flips and normalizes images to train on.

    Small images are padded by 4 and cropped back (He et al. 2016, section 4.2); large
    ones get a crop of 8 to 100 % of their area and an aspect ratio of 3/4 to 4/3,
    resized (Szegedy et al. 2015, section 6). Both are flipped half of the time, but not
    the digits of MNIST. Without `--augment`, as `evaluation`.

    Args:
        data: the options.
        images: uint8 (height, width, channels) of any size.
        seed: of the run.
        start: position of the first of them in the stream of training examples.

    Returns:
        (images, size, size, channels), float32.
    """
    if not data.augment:
        return evaluation(data, images)
    kind = kind_of(data)
    random = uniforms(seed, start, len(images), _NUMBERS[kind])
    images = [with_channels(image, data) for image in images]
    if kind == "small":
        images = [resized(image, data.image_size) for image in images]
    crop = _shifted if kind == "small" else _random_resized
    cropped = [
        crop(image, row, data.image_size)
        for image, row in zip(images, random, strict=True)
    ]
    if data.source != "mnist-idx":
        flip = random[:, -1] < 0.5
        cropped = [i[:, ::-1] if f else i for i, f in zip(cropped, flip, strict=True)]
    return normalized(data, np.stack(cropped))


def evaluation(data: config.Data, images: list[np.ndarray]) -> np.ndarray:
    """Normalizes images to evaluate on.

    Small images are resized if need be; of large ones the shorter side is resized to
    8/7 of the size (256 for 224) and the center is cropped.
    """
    images = [with_channels(image, data) for image in images]
    size = data.image_size
    if kind_of(data) == "small":
        return normalized(data, np.stack([resized(i, size) for i in images]))
    return normalized(data, np.stack([_center(i, size) for i in images]))


def normalized(data: config.Data, images: np.ndarray) -> np.ndarray:
    """(value / 255 - mean) / std of each channel, float32."""
    mean, std = _constants(data)
    # One multiplication and one addition for each value.
    scale = np.float32(1) / (np.float32(255) * np.asarray(std, np.float32))
    shift = -np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return images * scale + shift


def with_channels(image: np.ndarray, data: config.Data) -> np.ndarray:
    """The image with the number of channels of the options; grey becomes colour.

    Raises:
        UserError: if the image has another number of channels.
    """
    if image.shape[-1] == 1 and data.channels > 1:
        return np.repeat(image, data.channels, -1)
    if image.shape[-1] != data.channels:
        raise UserError(
            f"`--channels` must be that of the images, {image.shape[-1]}, got "
            f"{data.channels}. Pass --channels {image.shape[-1]}."
        )
    return image


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """The whole image as (size, size, channels)."""
    if image.shape[:2] == (size, size):
        return image
    return _resample(image, (size, size), None)


def _constants(data: config.Data) -> tuple[Any, Any]:
    if data.channels == 3:
        return _CIFAR if kind_of(data) == "small" else _IMAGENET
    return _MNIST if data.channels == 1 else (0.5, 0.25)


def _shifted(image: np.ndarray, random: np.ndarray, size: int) -> np.ndarray:
    # Not np.pad, which takes longer than everything else together.
    wide = size + 2 * _PADDING
    padded = np.zeros((wide, wide, image.shape[-1]), np.uint8)
    padded[_PADDING:-_PADDING, _PADDING:-_PADDING] = image
    top, left = (int(r * (2 * _PADDING + 1)) for r in random[:2])
    return padded[top : top + size, left : left + size]


def _random_resized(image: np.ndarray, random: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    areas, ratios, (down, right, *_) = np.split(random, [_TRIES, 2 * _TRIES])
    for a, r in zip(areas, ratios, strict=True):
        area = height * width * (0.08 + 0.92 * a)
        ratio = math.exp((2 * r - 1) * math.log(4 / 3))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            box = (left, top, left + w, top + h)
            return _resample(image, (size, size), box)
    return _center(image, size)


def _center(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width) * 7 / 8
    left, top = (width - side) / 2, (height - side) / 2
    return _resample(image, (size, size), (left, top, left + side, top + side))


def _resample(image: np.ndarray, size: tuple[int, int], box: Any) -> np.ndarray:
    """Bilinear, with the filter as wide as the pixels that become one."""
    from PIL import Image

    def one(values):
        whole = Image.fromarray(values)
        return np.asarray(whole.resize(size, Image.Resampling.BILINEAR, box=box))

    if image.shape[-1] == 3:
        return one(image)
    channels = np.moveaxis(image, -1, 0)
    return np.stack([one(np.ascontiguousarray(c)) for c in channels], -1)
