"""MNIST-1D, many signals at once: the package's generator makes one at a time.

The steps and the numbers are those of `mnist1d.transform`, which takes a minute for
the signals of ten starts; a test compares the two, signal by signal.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

_LONG, _SHORT = 72, 40  # before and after the last interpolation
_TEMPLATE, _PADDING = 12, (36, 60)
_SHIFTS, _SCALE, _SHEAR, _SMOOTH, _ROUGH = 48, 0.4, 0.75, 0.25, 0.02
_EPSILON = 1e-8  # tells the zeros of a template from the padding


class Drawn(NamedTuple):
    """The random numbers of some signals; the first axis is that of the signals."""

    padding: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    smooth: np.ndarray
    rough: np.ndarray
    shear: np.ndarray


def draw(seed: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns standardized signals, (size, 40) float32, and labels, int32."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size, dtype=np.int32) % 10)
    drawn = Drawn(
        rng.integers(_PADDING[0], _PADDING[1] + 1, size),
        rng.random(size),
        rng.integers(_SHIFTS, size=size),
        rng.standard_normal((size, _LONG)),
        rng.standard_normal((size, _LONG)),
        rng.random(size),
    )
    found = transformed(templates()[labels], drawn)
    return ((found - found.mean()) / found.std()).astype(np.float32), labels


def templates() -> np.ndarray:
    """Returns one signal of each digit, (10, 12)."""
    return importlib.import_module("mnist1d.data").get_templates()["x"]


def transformed(signals: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Pads, stretches, scales and shifts `signals`, adds noise, shears and shortens."""
    padded = np.pad(signals + _EPSILON, ((0, 0), (0, _PADDING[1])))
    x = _interpolated(padded, _TEMPLATE + drawn.padding, _LONG)
    x *= 1 + _SCALE * (drawn.scale[:, None] - 0.5)
    x = np.take_along_axis(x, (np.arange(_LONG) - drawn.shift[:, None]) % _LONG, 1)
    noise = ndimage.gaussian_filter1d(_SMOOTH * drawn.smooth, 2, axis=1)
    x = np.where(x != 0, x, noise) + _ROUGH * drawn.rough
    x -= _SHEAR * (drawn.shear[:, None] - 0.5) * np.linspace(-0.5, 0.5, _LONG)
    return _interpolated(x, np.full(len(x), _LONG), _SHORT)


def _interpolated(x: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Resamples the first `lengths` numbers of every row to `size`, linearly."""
    where = np.linspace(0, 1, size) * (lengths[:, None] - 1)
    low = np.minimum(where.astype(int), lengths[:, None] - 2)
    left, right = (np.take_along_axis(x, low + n, 1) for n in (0, 1))
    return left + (where - low) * (right - left)
