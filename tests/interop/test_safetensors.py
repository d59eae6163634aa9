"""The files are those of the safetensors library, in both directions."""

import json

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
    layer = interop.Layer(state, np.ones(3, np.float32), np.zeros(3, np.float32))
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
