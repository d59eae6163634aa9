"""A PyTorch layer goes on training here as it would there."""

import numpy as np
import pytest
from extras import needs

import jaxbn
from jaxbn import interop

torch = needs("torch")


def batches(shape, steps=10):
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=shape) * 2 + np.linspace(-3, 3, shape[1]).reshape(-1, 1, 1))
        .astype(np.float32)
        .reshape(shape)
        for _ in range(steps)
    ]


def trained(momentum=0.1, **options):
    torch.manual_seed(0)
    module = torch.nn.BatchNorm2d(3, momentum=momentum, eps=1e-4, **options)
    if module.affine:
        torch.nn.init.uniform_(module.weight)
        torch.nn.init.uniform_(module.bias)
    for x in batches((4, 3, 5, 5), steps=3):
        module(torch.from_numpy(x))
    return module


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
@pytest.mark.parametrize("affine", [True, False])
def test_ten_more_steps_agree_to_1e_6(momentum, affine):
    module = trained(momentum, affine=affine)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    got = interop.check_torch(module, batches((4, 3, 5, 5)))
    assert got.mean < 1e-6 and got.var < 1e-6
    assert got.train < 5e-6 and got.evaluate < 5e-6
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm3d"])
def test_other_ranks_agree(kind):
    shape = {"BatchNorm1d": (6, 3), "BatchNorm3d": (2, 3, 2, 2, 2)}[kind]
    module = getattr(torch.nn, kind)(3)
    rng = np.random.default_rng(0)
    data = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    assert max(interop.check_torch(module, data)) < 2e-6


def test_a_state_dictionary_makes_the_round_trip_through_a_file(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), trained())
    layer = interop.from_torch(net.state_dict(), prefix="1.", epsilon=1e-4)
    assert interop.torch_layers(net.state_dict()) == ["1."]
    interop.write_safetensors(tmp_path / "w", interop.to_torch(layer, prefix="1."))
    values = interop.read_safetensors(tmp_path / "w")
    other = torch.nn.BatchNorm2d(3)
    other.load_state_dict(
        {k[2:]: torch.from_numpy(v.copy()) for k, v in values.items()}
    )
    for key, want in net[1].state_dict().items():
        assert torch.equal(other.state_dict()[key], want)
    again = interop.from_torch(values, prefix="1.", epsilon=1e-4)
    assert again.momentum == layer.momentum == pytest.approx(0.9)
    np.testing.assert_array_equal(again.state, layer.state)


def test_files_keep_types_shapes_and_order(tmp_path):
    arrays = {
        "b": np.arange(6.0).reshape(2, 3),
        "a": np.asarray(jaxbn.init_state(3).var, dtype="bfloat16"),
        "scalar": np.array(7),
        "empty": np.zeros((0, 2), np.float16),
        "flags": np.array([True, False]),
    }
    interop.write_safetensors(tmp_path / "w", arrays)
    content = (tmp_path / "w").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    got = interop.read_safetensors(tmp_path / "w")
    assert list(got) == list(arrays)
    for name, want in arrays.items():
        assert got[name].dtype == want.dtype and got[name].shape == want.shape
        np.testing.assert_array_equal(got[name], want)


def test_messages_name_the_layers_there_are():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"must contain 'running_mean', got.*\['0.'\]"):
        interop.from_torch(net.state_dict())
    module = torch.nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(ValueError, match="`source` must contain 'running_mean'"):
        interop.from_torch(module)
    with pytest.raises(ValueError, match="`batches` must contain a batch"):
        interop.check_torch(torch.nn.BatchNorm1d(2), [])
