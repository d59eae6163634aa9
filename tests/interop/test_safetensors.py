"""The files are those of the safetensors library, in both directions."""

import json
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from extras import needs

import jaxbn
from jaxbn import interop

reference = needs("safetensors.numpy")

ARRAYS = {
    "layer.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "layer.half": np.array([1.5, -2.0], np.float16),
    "double": np.array([[1e300]], np.float64),
    "count": np.array(7, np.int64),
    "small": np.array([-1, 2], np.int8),
    "bytes": np.array([1, 255], np.uint8),
    "short": np.array([300], np.int16),
    "whole": np.array([70000], np.int32),
    "flags": np.array([True, False, True]),
    "unsigned": np.array([2**64 - 1], np.uint64),
    "less": np.array([[2**32 - 1]], np.uint32),
    "least": np.array(2**16 - 1, np.uint16),
    "complex": np.array([1 - 2j], np.complex64),
    "empty": np.zeros((0, 2), np.float32),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
}
BFLOAT16 = np.array([1.0, 3.140625], ml_dtypes.bfloat16)
NARROW = {
    name: np.array([[1.0, 2.0]], name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
}


def assert_same(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        np.testing.assert_array_equal(got[name], value)


def test_the_library_reads_what_is_written(tmp_path):
    interop.write_safetensors(tmp_path / "w", ARRAYS)
    assert_same(reference.load_file(tmp_path / "w"), ARRAYS)


def test_what_the_library_writes_is_read(tmp_path):
    plain = {k: np.asarray(v, order="C") for k, v in ARRAYS.items()}
    reference.save_file(plain, tmp_path / "w", metadata={"format": "pt"})
    assert_same(interop.read_safetensors(tmp_path / "w"), ARRAYS)


def test_bfloat16_goes_to_torch_and_back(tmp_path):
    torch = needs("torch")
    peer = needs("safetensors.torch")
    interop.write_safetensors(tmp_path / "w", {"bf": BFLOAT16})
    loaded = peer.load_file(tmp_path / "w")
    assert torch.equal(loaded["bf"], torch.tensor([1.0, 3.140625]).bfloat16())
    peer.save_file(loaded, tmp_path / "again")
    assert_same(interop.read_safetensors(tmp_path / "again"), {"bf": BFLOAT16})


def test_a_layer_goes_through_a_file_of_the_library(tmp_path):
    state = jaxbn.init_state(3)._replace(mean=np.arange(3, dtype=np.float32))
    affine = np.ones(3, np.float32), np.zeros(3, np.float32)
    layer = interop.Layer(state, *affine, axis=1, unbiased=True)
    arrays = {k: np.asarray(v) for k, v in interop.to_torch(layer).items()}
    reference.save_file(arrays, tmp_path / "w")
    again = interop.from_torch(interop.read_safetensors(tmp_path / "w"))
    np.testing.assert_array_equal(again.state.mean, state.mean)


def test_types_that_numpy_lacks_and_other_strides_come_back(tmp_path):
    big = np.arange(3, dtype=">f4")
    values = NARROW | {"backward": np.arange(9)[::-2], "empty": NARROW["bfloat16"][:0]}
    interop.write_safetensors(tmp_path / "w", values | {"big": big})
    got = interop.read_safetensors(tmp_path / "w")
    assert_same(got, values | {"big": big.astype(np.float32)})


def test_types_without_a_name_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"`arrays` must be of types F64, .*complex128"
    ):
        interop.write_safetensors(tmp_path / "w", {"z": np.zeros(2, complex)})
    (tmp_path / "w").write_bytes(file({"x": entry((2,), (0, 1), "F4")}, b"1"))
    with pytest.raises(
        ValueError, match=r"`path` must hold arrays of types.* got F4 f"
    ):
        interop.read_safetensors(tmp_path / "w")


def test_without_the_package_it_is_named_with_its_extra(tmp_path, monkeypatch):
    interop.write_safetensors(tmp_path / "w", {})
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: interop.read_safetensors(tmp_path / "w"),
        lambda: interop.write_safetensors(tmp_path / "w", {}),
    ):
        with pytest.raises(ImportError, match=r'pip install "jaxbn\[safetensors\]"'):
            call()


def file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape=(1,), span=(0, 4), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(span)}


WHOLE = file({"x": entry()}, b"1234")
PLACED = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DAMAGED = {
    "nothing": b"",
    "no size": b"\x01\x02",
    "cut header": WHOLE[:30],
    "cut data": WHOLE[:-1],
    "trailing bytes": WHOLE + b"5",
    "trailing bytes without arrays": file({}, b"1"),
    "archive": b"PK\x03\x04" + bytes(range(200)),
    "size of 2 ** 63": (2**63).to_bytes(8, "little") + b"{}",
    "size over the file's": (2**20).to_bytes(8, "little") + b"{}",
    "no text": file(b"\xff\xfe{}"),
    "no JSON": file(b"{not json"),
    "two values": file(b"{} {}"),
    "deep": file(b"[" * 100000),
    "deep inside": file(b'{"x":' + b"[" * 100000),
    "doubled": file(b'{"x":%s,"x":%s}' % (PLACED, PLACED), b"1234"),
    "doubled field": file(b'{"x":{"shape":[1],%s}' % PLACED[1:], b"1234"),
    "doubled note": file(b'{"__metadata__":{"a":"","a":""},"x":%s}' % PLACED, b"1234"),
    "note of a number": file({"__metadata__": {"a": 1}}),
    "list": file([1, 2]),
    "null": file(b"null"),
    "number": file({"x": 1}),
    "only a type": file({"x": {"dtype": "F32"}}),
    "unknown type": file({"x": entry(kind="F99")}, b"1234"),
    "list as type": file({"x": entry(kind=[])}, b"1234"),
    "wrong product": file({"x": entry(shape=(2,))}, b"1234"),
    "overflow": file({"x": entry(shape=(2**62, 4))}, b"1234"),
    "overflow without values": file({"x": entry(shape=(0, 2**63), span=(0, 0))}),
    "rank 100": file({"x": entry(shape=[1] * 100)}, b"1234"),
    "negative size": file({"x": entry(shape=(-1,))}, b"1234"),
    "true as size": file({"x": entry(shape=(True,))}, b"1234"),
    "text as size": file({"x": entry(shape="1")}, b"1234"),
    "5000 digits": file(b'{"x":%s}' % PLACED.replace(b"[1]", b"[%s]" % (b"9" * 5000))),
    "backward": file({"x": entry(span=(4, 0))}, b"1234"),
    "negative place": file({"x": entry(span=(-4, 0))}, b"1234"),
    "three places": file({"x": entry(span=(0, 4, 8))}, b"1234"),
    "fractions": file({"x": entry(span=(0.0, 4.0))}, b"1234"),
    "beyond the end": file({"x": entry(span=(96, 100))}, b"1234"),
    "hole": file({"x": entry(span=(4, 8))}, b"12345678"),
    "overlap": file({"x": entry(), "y": entry()}, b"1234"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^`path` must be a safetensors file, got '.*'"
    ):
        interop.read_safetensors(tmp_path / "w")


def test_arrays_come_in_the_order_of_the_header(tmp_path):
    names = list("qwertyuiopasdfgh")
    (tmp_path / "w").write_bytes(file({n: entry((0,), (0, 0)) for n in names}))
    assert list(interop.read_safetensors(tmp_path / "w")) == names


def test_a_path_and_arrays_are_asked_for(tmp_path):
    for read in (
        interop.read_safetensors,
        lambda path: interop.write_safetensors(path, {}),
    ):
        with pytest.raises(TypeError, match="`path` must be a path, got None"):
            read(None)
        with pytest.raises(ValueError, match="`path` must be a file, got the folder"):
            read(tmp_path)
    with pytest.raises(FileNotFoundError):
        interop.read_safetensors(tmp_path / "missing")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.ones(2)], "`arrays` must be a mapping, got"),
        ({3: np.ones(2)}, "`arrays` must have strings as names, .*got 3"),
        ({"__metadata__": np.ones(2)}, "`arrays` must have strings .* got '__meta"),
        ({"\ud800": np.ones(2)}, "`arrays` must have strings .* got '.ud800'"),
        ({"x": None}, "`arrays` must be of types .*got object for 'x'"),
        ({"x": "text"}, "`arrays` must be of types .*got <U4 for 'x'"),
        (
            {"x": [[1], [1, 2]]},
            r"`arrays\['x'\]` must be an array with values, got",
        ),
        ({"x": jax.random.key(0)}, r"`arrays\['x'\]` must have values that NumPy has"),
    ],
)
def test_what_no_file_holds_is_refused(tmp_path, arrays, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.write_safetensors(tmp_path / "w", arrays)
    assert not (tmp_path / "w").exists()


def test_traced_arrays_are_refused_and_tensors_are_written(tmp_path):
    torch = needs("torch")
    with pytest.raises(TypeError, match=r"`arrays\['x'\]` must have values"):
        jax.jit(lambda x: interop.write_safetensors(tmp_path / "w", {"x": x}))(1.0)
    interop.write_safetensors(tmp_path / "w", {"x": torch.nn.Parameter(torch.ones(2))})
    assert_same(interop.read_safetensors(tmp_path / "w"), {"x": np.ones(2, np.float32)})
