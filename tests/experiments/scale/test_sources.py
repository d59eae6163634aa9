"""Every source gives images and labels, or says what is wrong with its files."""

import dataclasses
import gzip
import io
import struct
import sys

import numpy as np
import pytest
from extras import needs
from PIL import Image

from experiments.common.errors import UserError
from experiments.scale import config, source_files
from experiments.scale.sources import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = np.arange(12) % 10


def data(source, path=None, **options):
    return config.Data(source=source, data_dir=path, **options)


def check(source, images, labels):
    assert len(source) == len(images)
    for i in (0, len(images) - 1, 1):
        example = source[np.int64(i)]
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], images[i])
        assert example["label"] == labels[i] and type(example["label"]) is int
    for wrong in (len(images), -1):
        with pytest.raises(IndexError, match=f"got {wrong}"):
            source[wrong]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_cifar(path, name, images, labels):
    rows = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    ]
    (path / name).write_bytes(b"".join(rows))


def write_idx(path, values, *, opened=open):
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    with opened(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


def test_fake_is_the_same_every_time_and_any_shape():
    options = {"image_size": 9, "channels": 2, "classes": 3, "fake_eval_examples": 5}
    train, again = (open_source(data("fake", **options), split="train") for _ in "ab")
    check(train, [again[i]["image"] for i in range(2048)], np.arange(2048) % 3)
    other = open_source(data("fake", **options), split="eval")
    assert len(other) == 5 and other[0]["image"].shape == (9, 9, 2)
    assert not any((other[0]["image"] == train[i]["image"]).all() for i in range(9))


def test_fake_can_be_learned():
    source = open_source(data("fake"), split="train")
    examples = [source[i] for i in range(400)]
    images = np.stack([e["image"] for e in examples]).astype(float)
    labels = np.array([e["label"] for e in examples])
    means = np.stack([images[:300][labels[:300] == c].mean(0) for c in range(10)])
    distance = np.square(images[300:, None] - means).sum((2, 3, 4))
    assert (distance.argmin(1) == labels[300:]).all()


def test_cifar_binary_reads_all_parts_in_order(tmp_path):
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for i in range(5):
        part = slice(i, i + 1) if i < 4 else slice(4, 12)
        write_cifar(inner, f"data_batch_{i + 1}.bin", IMAGES[part], LABELS[part])
    write_cifar(inner, "test_batch.bin", IMAGES[:3], LABELS[:3])
    for folder in (tmp_path, inner):
        train = open_source(data("cifar-binary", folder), split="train")
        check(train, IMAGES, LABELS)
        check(
            open_source(data("cifar-binary", folder), split="eval"), IMAGES[:3], LABELS
        )


@pytest.mark.parametrize("opened", [open, gzip.open])
def test_mnist_idx_reads_plain_and_compressed_files(tmp_path, opened):
    end = ".gz" if opened is gzip.open else ""
    for prefix, count in (("train", 12), ("t10k", 4)):
        grey, labels = IMAGES[:count, :28, :28, 0], LABELS[:count]
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{end}", grey, opened=opened)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{end}", labels, opened=opened)
    given = data("mnist-idx", tmp_path)
    check(open_source(given, split="train"), IMAGES[:, :28, :28, :1], LABELS)
    check(open_source(given, split="eval"), IMAGES[:4, :28, :28, :1], LABELS)


@pytest.mark.parametrize("encode", [np.asarray, png])
def test_array_record_keeps_raw_and_encoded_images(tmp_path, encode):
    needs("array_record")
    rows = [
        {"image": encode(image), "label": label}
        for image, label in zip(IMAGES, LABELS, strict=True)
    ]
    for name, part in (
        ("train-0", rows[:5]),
        ("train-1", rows[5:]),
        ("eval", rows[:2]),
    ):
        source_files.write_array_record(tmp_path / f"{name}.arrayrecord", part)
    given = data("arrayrecord", tmp_path)
    check(open_source(given, split="train"), IMAGES, LABELS)
    check(open_source(given, split="eval"), IMAGES[:2], LABELS)


def test_hugging_face_reads_what_was_saved(tmp_path):
    library = needs("datasets")
    features = library.Features(
        {
            "img": library.Image(),
            "label": library.ClassLabel(10),
            "more": library.Value("int32"),
        }
    )
    columns = {"img": [Image.fromarray(i) for i in IMAGES], "label": list(LABELS)}
    columns["more"] = list(range(12))
    table = library.Dataset.from_dict(columns, features=features)
    splits = library.DatasetDict(train=table, test=table.select(range(3)))
    splits.save_to_disk(str(tmp_path / "saved"))
    given = data("hf", tmp_path / "saved")
    check(open_source(given, split="train"), IMAGES, LABELS)
    check(open_source(given, split="eval"), IMAGES[:3], LABELS)
    grey = open_source(dataclasses.replace(given, channels=1), split="train")
    assert grey[0]["image"].shape == (32, 32, 1)


def test_hugging_face_says_what_is_missing(tmp_path):
    library = needs("datasets")
    table = library.Dataset.from_dict({"text": ["a"], "label": [0]})
    library.DatasetDict(train=table).save_to_disk(str(tmp_path / "text"))
    table.save_to_disk(str(tmp_path / "single"))
    for name, split, message in [
        ("text", "train", "must have a column named one of .*'text'"),
        ("text", "eval", "must have the split 'validation' or 'test', got .'train'."),
        ("single", "train", "must have splits, got a single table"),
        ("nothing", "train", "must name a data set of Hugging Face, got .*nothing"),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(data("hf", tmp_path / name), split=split)


def test_tfds_reads_what_it_prepared_for_random_access(tmp_path):
    library = needs("tensorflow_datasets")

    class Tiny(library.core.GeneratorBasedBuilder):
        """A data set of twelve images."""

        VERSION = library.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            return self.dataset_info_from_configs(
                features=library.features.FeaturesDict(
                    {
                        "image": library.features.Tensor(
                            shape=(32, 32, 3), dtype=np.uint8
                        ),
                        "label": library.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, manager):
            return {"train": self._some(12), "test": self._some(3)}

        def _generate_examples(self):
            return []

        def _some(self, count):
            for i in range(count):
                yield i, {"image": IMAGES[i], "label": int(LABELS[i])}

    folder = str(tmp_path)
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    given = data("tfds", tmp_path, dataset="tiny")
    train = open_source(given, split="train")
    # Splits are shuffled when they are prepared.
    found = sorted((train[i]["label"], train[i]["image"].tobytes()) for i in range(12))
    pairs = zip(LABELS, IMAGES, strict=True)
    assert found == sorted((int(label), image.tobytes()) for label, image in pairs)
    assert len(open_source(given, split="eval")) == 3


def test_tfds_says_how_to_prepare_a_data_set(tmp_path):
    needs("tensorflow_datasets")
    message = "got 'no_such' in .* tfds build no_such --file_format=array_record"
    with pytest.raises(UserError, match=message):
        open_source(data("tfds", tmp_path, dataset="no_such"), split="train")


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [
        ("tfds", "tensorflow_datasets", "tfds"),
        ("hf", "datasets", "hf"),
        ("arrayrecord", "array_record.python.array_record_data_source", "data"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path, monkeypatch, source, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "train.arrayrecord").touch()
    with pytest.raises(UserError, match=rf'pip install "jaxbn\[{extra}\]"'):
        open_source(data(source, tmp_path, dataset="x"), split="train")


@pytest.mark.parametrize("source", ["cifar-binary", "mnist-idx", "arrayrecord"])
def test_a_missing_directory_or_file_is_named(tmp_path, source):
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"with `--source {source}`, got {folder}"):
            open_source(data(source, folder), split="train")
    with pytest.raises(UserError, match=r"(?s)`--data-dir` must .*, got none in"):
        open_source(data(source, tmp_path), split="eval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got 0 bytes"),
        (bytes(3072), "must consist of records of 3073 bytes, got 3072 bytes"),
        (b"\x0a" + bytes(3072), "must have labels from 0 to 9, got 10"),
    ],
)
def test_a_damaged_cifar_file_is_named(tmp_path, content, message):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(UserError, match=f"test_batch.bin` .*{message}"):
        open_source(data("cifar-binary", tmp_path), split="eval")


def test_a_damaged_mnist_file_is_named(tmp_path):
    images, labels = (
        tmp_path / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")
    )
    write_idx(labels, LABELS)
    write_idx(images, IMAGES[:3, :28, :28, 0])
    given, whole = data("mnist-idx", tmp_path), images.read_bytes()

    def refused(message):
        with pytest.raises(UserError, match=message):
            open_source(given, split="train")

    refused("must have as many labels as images, got 12 and 3")
    images.write_bytes(whole[:-1])
    refused("must have 2352 values after its header, got 2351")
    images.write_bytes(b"\x00\x00\x0d\x03" + whole[4:])
    refused("with 3 dimensions, got 00 00 0d 03")
    images.unlink()
    packed = images.with_name("train-images-idx3-ubyte.gz")
    packed.write_bytes(gzip.compress(whole)[:-20])
    refused("ubyte.gz` must be a readable file")


def test_a_damaged_array_record_is_named(tmp_path):
    needs("array_record")
    (tmp_path / "train.arrayrecord").write_bytes(b"not records" * 99)
    with pytest.raises(UserError, match="must be whole ArrayRecord files"):
        open_source(data("arrayrecord", tmp_path), split="train")
    writer = source_files._array_record("module").ArrayRecordWriter(
        str(tmp_path / "eval.arrayrecord"), "group_size:1"
    )
    writer.write(b"\x81\xa5label\x01")
    writer.close()
    source = open_source(data("arrayrecord", tmp_path), split="eval")
    with pytest.raises(UserError, match=r"Record 0 of .* must be an image and its"):
        source[0]


def test_a_source_without_examples_or_without_a_name_is_refused():
    with pytest.raises(UserError, match="must have examples to evaluate on, got none"):
        open_source(data("fake", fake_eval_examples=0), split="eval")
    needs("datasets")
    with pytest.raises(UserError, match="`--dataset` must be given with `--source hf`"):
        open_source(data("hf"), split="train")
