"""Images and labels as sources give them, or what is wrong with them.

All errors are `ValueError`s about one example: a source adds which one it is.
"""

import functools
import io
import operator
import warnings
from typing import Any

import numpy as np

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # none that runs a program


def example(image: Any, label: Any, *, channels: int) -> dict[str, Any]:
    """An example from an image as `decoded` takes it and a label of any integer type.

    Raises:
        ValueError: if there is something else.
    """
    return {"image": decoded(image, channels=channels), "label": class_of(label)}


def decoded(image: Any, *, channels: int) -> np.ndarray:
    """An image as uint8 (height, width, channels).

    Of what is decoded, palettes are looked up, transparency is dropped, animations are
    their first frame, and colours of 16 bits lose the lower 8 of them.

    Args:
        image: integers from 0 to 255, an image of PIL, or the bytes of a file of the
            formats JPEG, PNG, WEBP, BMP, GIF or TIFF.
        channels: 1 or 3, for what has to be decoded. Arrays stay as they are, except
            that grey ones get a channel.

    Raises:
        ValueError: if it is something else, damaged, or larger than PIL trusts.
    """
    if not isinstance(image, bytes) and not hasattr(image, "convert"):
        return checked(image)
    try:
        if isinstance(image, bytes):
            image = pillow().open(io.BytesIO(image), formats=_FORMATS)
        if image.mode[0] in "IF":  # PIL would cut them off at 255
            raise ValueError(f"an image of mode {image.mode}, not of 8 bits")
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return checked(image.convert("L" if channels == 1 else "RGB"))
    except ValueError:
        raise
    except pillow().UnidentifiedImageError as error:
        raise ValueError(f"bytes that are no {' or '.join(_FORMATS)} file") from error
    except Exception as error:  # damaged files raise nearly everything in PIL
        raise ValueError(f"an image that cannot be decoded: {error}") from error


def checked(image: Any) -> np.ndarray:
    """An array of pixels as uint8 (height, width, channels).

    Raises:
        ValueError: if it has another shape, type or range.
    """
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"an image of shape {values.shape} instead of (height, width, channels)"
        )
    if values.dtype.kind not in "iu":
        raise ValueError(f"an image of type {values.dtype} instead of uint8")
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 255):
        raise ValueError(
            f"an image with values from {values.min()} to {values.max()} instead of 0 "
            "to 255"
        )
    return values.astype(np.uint8, copy=False)


def class_of(label: Any) -> int:
    """A label as the number of a class, from 0.

    Raises:
        ValueError: if it is no integer, or negative.
    """
    try:
        number = operator.index(label)
    except TypeError:
        number = -1
    if number < 0 or isinstance(label, bool):
        raise ValueError(f"the label {label!r:.60} instead of the number of a class")
    return number


def shape_of(shape: Any) -> tuple[int, ...]:
    """A shape that a file tells.

    Raises:
        ValueError: if it is not (height, width, channels).
    """
    good = isinstance(shape, list) and len(shape) == 3
    if not good or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(
            f"the shape {shape!r:.60} instead of [height, width, channels]"
        )
    return tuple(shape)


@functools.cache
def pillow() -> Any:
    """`PIL.Image`, for which images of too many pixels are an error in all threads."""
    from PIL import Image

    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    return Image
