"""The files are those of the safetensors library, in both directions."""

import json

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
    "empty": np.zeros((0, 2), np.float32),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
}
BFLOAT16 = np.array([1.0, 3.140625], ml_dtypes.bfloat16)


def assert_same(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        np.testing.assert_array_equal(got[name], value)


def test_the_library_reads_what_is_written(tmp_path):
    interop.write_safetensors(tmp_path / "w", ARRAYS)
    assert_same(reference.load_file(tmp_path / "w"), ARRAYS)


def test_what_the_library_writes_is_read(tmp_path):
    plain = {k: np.ascontiguousarray(v) for k, v in ARRAYS.items()}
    plain["count"] = ARRAYS["count"]
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


def test_types_without_a_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`arrays` must be of types F64, .*complex64"):
        interop.write_safetensors(tmp_path / "w", {"z": np.zeros(2, np.complex64)})
    header = json.dumps({"x": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}})
    size = len(header).to_bytes(8, "little")
    (tmp_path / "w").write_bytes(size + header.encode() + b"\0")
    with pytest.raises(ValueError, match=r"`path` must hold arrays of types.*'F8'"):
        interop.read_safetensors(tmp_path / "w")


def file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape=(1,), span=(0, 4), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(span)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got 0 bytes for a header that ends at 8"),
        (b"\x01\x02", "got 2 bytes for a header"),
        (file({"x": entry()}, b"1234")[:30], "got 30 bytes for a header that ends at"),
        (file({"x": entry()}, b"123"), "got 3 bytes of arrays instead of 4"),
        (file({"x": entry()}, b"12345"), "got 5 bytes of arrays instead of 4"),
        (b"PK\x03\x04" + bytes(range(200)), "for a header that ends at"),
        (file(b"\xff\xfe{}"), "a header that cannot be read"),
        (file(b"{not json"), "a header that cannot be read"),
        (file(b"[" * 100000), "a header that cannot be read"),
        (file(b'{"x": 1, "x": 2}'), "a header that cannot be read"),
        (file([1, 2]), "a header that is a list"),
        (file(b"null"), "a header that is a NoneType"),
        (file({"x": 1}), "no type, shape and place for 'x'"),
        (file({"x": {"dtype": "F32"}}), "no type, shape and place for 'x'"),
        (
            file({"x": entry(kind="F99")}, b"1234"),
            r"arrays of types .*got 'F99' for 'x'",
        ),
        (file({"x": entry(kind=[])}, b"1234"), r"arrays of types .*got \[\] for 'x'"),
        (
            file({"x": entry(shape=(2,))}, b"1234"),
            r"shape \[2\] of F32 at \[0, 4\] for",
        ),
        (file({"x": entry(shape=(-1,))}, b"1234"), r"shape \[-1\] at \[0, 4\] for 'x'"),
        (file({"x": entry(shape=(True,))}, b"1234"), r"shape \[True\] at"),
        (file({"x": entry(shape="1")}, b"1234"), r"shape \['1'\] at"),
        (file({"x": entry(span=(4, 0))}, b"1234"), r"at \[4, 0\] for 'x'"),
        (file({"x": entry(span=(0, 4, 8))}, b"1234"), r"at \[0, 4, 8\] for 'x'"),
        (
            file({"x": entry(span=(96, 100))}, b"1234"),
            "array at 96 where one at 0 was due",
        ),
        (
            file({"x": entry(), "y": entry()}, b"1234"),
            "array at 0 where one at 4 was due",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ValueError, match=f"^`path` must (be a safe|hold).*{message}"):
        interop.read_safetensors(tmp_path / "w")


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
