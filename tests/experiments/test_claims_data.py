"""The data of the claims: splits, IDX files, order of the batches."""

import gzip

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.lab import splits
from experiments.lab.engine import Plan, batches
from experiments.lab.nets import mlp
from experiments.lab.norms import none


def write_mnist(directory, *, packed=False):
    rng = np.random.default_rng(0)
    for name, ndim in splits._IDX.items():
        shape = (40, 28, 28)[:ndim] if name.startswith("train") else (20, 28, 28)[:ndim]
        values = rng.integers(0, 256 if ndim == 3 else 10, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, ndim]) + np.array(shape, ">i4").tobytes()
        content = header + values.tobytes()
        path = directory / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read(tmp_path, packed):
    write_mnist(tmp_path, packed=packed)
    data = splits.mnist(tmp_path, starts=2, seed=0)
    assert data.inputs.shape == (60, 784) and data.inputs.max() == 1
    assert [part.shape for part in data[2:]] == [(2, 36), (2, 4), (2, 20)]


@pytest.mark.parametrize("damage", ["missing", "cut", "kind"])
def test_damaged_idx_files_are_named(tmp_path, damage):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        splits.mnist(tmp_path, starts=1, seed=0)


def test_rows_of_a_start_do_not_overlap():
    data = splits.digits(starts=3, seed=0)
    for parts in zip(*data[2:], strict=True):
        rows = np.concatenate(parts)
        assert len(set(rows.tolist())) == len(rows) == 1797


def test_every_pass_takes_every_row_once():
    data = splits.digits(starts=2, seed=0)
    plan = Plan(mlp(none()), data, [{"lr": 0.1}], steps=34, batch=64, evals=2, seed=3)
    order = batches(plan)
    assert order.shape == (2, 2, 17, 64)
    first = order[0].reshape(-1)[: 17 * 64]
    assert len(set(first.tolist())) == 17 * 64
    assert set(first.tolist()) <= set(data.train[0].tolist())
    np.testing.assert_array_equal(order, batches(plan))
