"""Images of every kind become uint8 pixels, and everything else is said in one line."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from extras import needs
from PIL import Image

from experiments.__main__ import main
from experiments.common.errors import UserError
from experiments.scale import config, images, pipeline, source_files
from experiments.scale.sources import Table

RGB = np.arange(0, 240, 5, np.uint8).reshape(4, 4, 3)
GREY = RGB[..., 0]
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def saved(values, kind="PNG", **options):
    file = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, *, bits=8, data=b"", more=b""):
    """A file in colour whose header tells what it likes."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">2I5B", width, height, bits, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + (chunk(b"zTXt", more) if more else b"")
    end = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts + end


FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
KINDS = {
    "bytes of a file": (saved(RGB), RGB),
    "integers of another type": (RGB.astype(np.int64), RGB),
    "lists": (RGB.tolist(), RGB),
    "an image of PIL": (Image.fromarray(RGB), RGB),
    "transparent": (saved(np.dstack([RGB, GREY * 0])), RGB),
    "a palette": (saved(Image.fromarray(GREY).convert("P")), np.dstack([GREY] * 3)),
    "a transparent palette": (
        saved(Image.fromarray(GREY).convert("P"), transparency=b"\0\x80"),
        np.dstack([GREY] * 3),
    ),
    "animated": (saved(RGB, **FRAMES), RGB),
    "animated WebP": (saved(RGB, "WEBP", lossless=True, **FRAMES), RGB),
    "BMP": (saved(RGB, "BMP"), RGB),
    "TIFF": (saved(RGB, "TIFF"), RGB),
    "16 bits": (
        png(2, 2, bits=16, data=2 * (b"\0" + 6 * b"\x12\xff")),
        np.full((2, 2, 3), 0x12, np.uint8),
    ),
    "an array in grey": (GREY, GREY[..., None]),
}


@pytest.mark.parametrize(("image", "want"), KINDS.values(), ids=KINDS)
def test_images_of_every_kind_are_pixels(image, want):
    got = images.decoded(image, channels=3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


BAD_IMAGES = {
    "nothing": (b"", "bytes that are no JPEG or PNG or"),
    "a program": (saved(RGB, "EPS"), "bytes that are no JPEG or PNG or"),
    "a format without a name": (saved(RGB, "PPM"), "bytes that are no JPEG or PNG or"),
    "truncated PNG": (saved(NOISE)[:-800], "cannot be decoded: .*truncated"),
    "truncated JPEG": (saved(NOISE, "JPEG")[:-800], "cannot be decoded: .*truncated"),
    "PNG of 10^8 pixels": (png(10**4, 10**4), "exceeds limit of 89478485 pixels"),
    "PNG of 10^18 pixels": (png(2**30, 2**30), "exceeds limit"),
    "text of 10 MB": (
        png(2, 2, more=b"a\0\0" + zlib.compress(bytes(10**7))),
        "too large for Png",
    ),
    "16 bits in grey": (saved(GREY.astype(np.uint16)), "of mode I;16, not of 8 bits"),
    "floats in TIFF": (saved(GREY.astype(np.float32), "TIFF"), "of mode F, not of"),
    "floats": (RGB / 255, "an image of type float64 instead of uint8"),
    "NaN": (np.full((2, 2), np.nan), "an image of type float64 instead of uint8"),
    "truths": (RGB > 9, "an image of type bool instead of uint8"),
    "256": (RGB.astype(int) + 22, "with values from 22 to 257 instead of 0 to 255"),
    "negative": (RGB.astype(np.int8) - 100, "with values from -"),
    "large integers": ([[2**70]], "an image of type object instead of uint8"),
    "objects": (np.array([[None]]), "an image of type object instead of uint8"),
    "texts": (np.array([["a"]]), "an image of type <U1 instead of uint8"),
    "a text": ("text", r"an image of shape \(\) instead of"),
    "none": (None, r"an image of shape \(\) instead of"),
    "ragged": ([[1], [1, 2]], "inhomogeneous shape"),
    "rank 1": (GREY[0], r"of shape \(4,\) instead of \(height, width, channels\)"),
    "rank 4": (RGB[None], r"of shape \(1, 4, 4, 3\) instead of"),
    "no height": (RGB[:0], r"of shape \(0, 4, 3\) instead of"),
    "no width": (GREY[:, :0], r"of shape \(4, 0, 1\) instead of"),
    "no channels": (RGB[..., :0], r"of shape \(4, 4, 0\) instead of"),
}


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_what_is_no_image_is_named_with_its_row(image, message):
    table = Table([{"x": image, "y": 1}], "x", "y", 3, "`--dataset a`")
    with pytest.raises(
        UserError, match=f"^Row 0 of `--dataset a` .*{message}"
    ) as error:
        table[0]
    assert "\n" not in str(error.value)


def test_an_image_of_too_many_pixels_is_an_error_where_warnings_are_none():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images.pillow.cache_clear()
        with pytest.raises(ValueError, match="exceeds limit of 89478485 pixels"):
            images.decoded(png(10**4, 10**4), channels=3)


BAD_LABELS = [
    *(-1, -(2**70), 1.7, np.float32(3), float("nan"), True, np.True_, None, "3", b"3"),
    *([3], np.array([3]), np.array([1, 2]), {}, 1j),
]


@pytest.mark.parametrize("label", BAD_LABELS, ids=repr)
def test_what_is_no_label_is_named_with_its_row(tmp_path, label):
    table = Table([{"x": RGB, "y": 1}, {"x": RGB, "y": label}], "x", "y", 3, "`--a`")
    with pytest.raises(UserError, match=r"Row 1 of `--a` .* the label .* instead of"):
        table[1]
    with pytest.raises(ValueError, match=r"the label .* instead of the number of a cl"):
        source_files.write_array_record(
            tmp_path / "a", [{"image": RGB, "label": label}]
        )


@pytest.mark.parametrize("label", [3, np.uint8(3), np.int64(3), np.array(3)], ids=repr)
def test_integers_of_every_type_are_labels(label):
    found = images.class_of(label)
    assert found == 3 and type(found) is int


PIXELS = RGB.tobytes()
BAD_RECORDS = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "two values": b"\x80\x80",
    "cut": b"\x82\xa5label\x01\xa5image\xc6\xff\xff\xff\xff",
    "a number": b"\x01",
    "a list": b"\x91\x01",
    "an empty map": b"\x80",
    "numbers as keys": b"\x81\x01\x02",
    "deep": b"\x91" * 10**5,
    "wide": b"\xdd\xff\xff\xff\xff",
    "ten million lists": b"\xdd\x00\x98\x96\x80" + b"\x90" * 10**7,
    "a tree of lists": b"\x94" + (b"\x94" + b"\x94\x90\x90\x90\x90" * 4) * 4,
    "a tree of maps": b"\x81\xa1a\x81\xa1a\x81\xa1a\x80",
    "lists in lists": {"label": 1, "image": saved(RGB), "more": [[1]]},
    "maps in maps": {"label": 1, "image": saved(RGB), "more": {"a": 1}},
    "no label": {"image": PIXELS, "shape": [4, 4, 3]},
    "no image": {"label": 1, "shape": [4, 4, 3]},
    "text as image": {"label": 1, "image": "text", "shape": [4, 4, 3]},
    "a list as image": {"label": 1, "image": [1, 2], "shape": [4, 4, 3]},
    "a label of 64 bits": {"label": -(2**63), "image": PIXELS, "shape": [4, 4, 3]},
    **{
        f"shape {shape!r:.30}": {"label": 1, "image": PIXELS, "shape": shape}
        for shape in (
            *([], [4, 4], [4, 4, 3, 1], [4, 4, 4], [4, 4, -1], [0, 4, 3], [4, 4, 3.0]),
            *([4, 12, True], [2**62, 4, 3], "443", 48, {"a": 1}, [[4], [4], [3]]),
        )
    },
}


@pytest.mark.parametrize("record", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_records_that_are_no_examples_are_named(record):
    msgpack = needs("msgpack")
    raw = record if isinstance(record, bytes) else msgpack.packb(record)
    good = msgpack.packb({"label": 1, "image": PIXELS, "shape": [4, 4, 3]})
    source = source_files.ArrayRecords([good, raw], 3, "a/train*.arrayrecord")
    np.testing.assert_array_equal(source[0]["image"], RGB)
    with pytest.raises(
        UserError, match=r"^Record 1 of `a/train.*an image and its label"
    ):
        source[1]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_a_loader_is_one_line_and_exit_code_2(tmp_path, capsys, threads):
    needs("array_record")
    for name in ("train", "eval"):
        rows = [{"image": RGB, "label": 1}] * 7 + [{"image": b"x", "label": 1}]
        source_files.write_array_record(tmp_path / f"{name}.arrayrecord", rows)
    words = ["--config=cifar10-resnet20", "--depth=8", "--image-size=4", "--steps=2"]
    words += [f"--loader-threads={threads}", "--batch-size=8", f"--data-dir={tmp_path}"]
    words += ["--source=arrayrecord", f"--out={tmp_path / 'run'}"]
    assert main(["train", *words]) == 2
    error = [
        line for line in capsys.readouterr().err.splitlines() if line[:5] == "error"
    ]
    assert len(error) == 1 and "Record 7 of" in error[0]


@pytest.mark.parametrize("label", [10, 2**40, 2**63 - 1])
def test_a_label_beyond_the_classes_is_named_with_its_example(tmp_path, label):
    needs("array_record")
    rows = [{"image": RGB, "label": 9}, {"image": RGB, "label": label}]
    source_files.write_array_record(tmp_path / "train.arrayrecord", rows)
    data = config.Data("arrayrecord", tmp_path, image_size=4, loader_threads=0)
    batches = pipeline.train_batches(data, batch_size=2, seed=0, process=0, processes=1)
    with pytest.raises(UserError, match=f"the label {label} of example 1. Pass the nu"):
        next(batches)
