"""A PyTorch layer goes on training here as it would there."""

import pathlib

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


@pytest.mark.parametrize(
    ("momentum", "affine"),
    [
        (0.1, True),
        (0.01, False),
        (None, True),
        pytest.param(0.1, False, marks=pytest.mark.slow),
        pytest.param(0.01, True, marks=pytest.mark.slow),
        pytest.param(None, False, marks=pytest.mark.slow),
    ],
)
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


def test_files_keep_types_and_shapes(tmp_path):
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
    assert set(got) == set(arrays)
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


class FrozenBatchNorm2d(torch.nn.Module):
    """As in torchvision: buffers only, and an epsilon."""

    def __init__(self, size, eps=1e-3):
        super().__init__()
        for name, start in zip(
            ("weight", "bias", "running_mean", "running_var"), (1, 0, 0, 1), strict=True
        ):
            self.register_buffer(name, torch.full((size,), float(start)))
        self.eps = eps

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        offset = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + offset[:, None, None]


class BatchNormAct2d(torch.nn.BatchNorm2d):
    """As in timm: with an activation after it."""

    def __init__(self, size):
        super().__init__(size)
        self.drop, self.act = torch.nn.Identity(), torch.nn.ReLU()


def test_a_frozen_layer_is_the_same_at_evaluation():
    module = FrozenBatchNorm2d(3)
    module.running_mean += 1
    (x,) = batches((4, 3, 5, 1), steps=1)
    layer = interop.from_torch(module, momentum=0.2)
    assert (layer.momentum, layer.epsilon) == (0.8, 1e-3)
    want = module(torch.from_numpy(x))
    np.testing.assert_allclose(layer.evaluate(x), want, atol=5e-6)
    del module.eps
    assert interop.from_torch(module, epsilon=0.5).epsilon == 0.5
    got = interop.from_torch(module.state_dict())
    np.testing.assert_array_equal(got.state.mean, 1)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.SyncBatchNorm(3),
        torch.nn.BatchNorm2d(3).half(),
        torch.nn.BatchNorm2d(3).bfloat16(),
        torch.nn.BatchNorm2d(3).double(),
        torch.nn.BatchNorm2d(3, bias=False),
        type("Own", (torch.nn.BatchNorm2d,), {})(3),
    ],
)
def test_other_kinds_and_types_of_batch_normalization_are_read(module):
    for source in (module, module.state_dict(), module.state_dict(keep_vars=True)):
        assert interop.from_torch(source).state.var.dtype == np.float32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.nn.InstanceNorm2d(3, track_running_stats=True), "got InstanceNorm2d"),
        (torch.nn.GroupNorm(1, 3), "must be a BatchNorm module, got GroupNorm"),
        (torch.nn.LayerNorm(3), "must be a BatchNorm module, got LayerNorm"),
        (
            torch.nn.LayerNorm(3).state_dict(),
            r"'running_mean', got the keys \['weight'",
        ),
        (
            torch.nn.Sequential(torch.nn.BatchNorm1d(2)),
            r"Sequential.* layers \['0\.'\]",
        ),
        (
            torch.nn.BatchNorm1d,
            "must be .* state dictionary, got the class BatchNorm1d",
        ),
        (torch.nn.LazyBatchNorm2d(), "'running_mean'.* array with values.* lazy"),
        (
            torch.nn.BatchNorm2d(3, device="meta"),
            "'running_mean'.* must be an array with values",
        ),
        (torch.optim.SGD([torch.zeros(1)]), "must be .* state dictionary, got SGD"),
        (torch.zeros(3), "must be .* state dictionary, got Tensor of type"),
        (
            "weights.pth",
            "must be .* state dictionary, got 'weights.pth'.*`torch.load` or `read_s",
        ),
        (
            pathlib.Path("w"),
            "must be .* state dictionary, got PosixPath.*`torch.load` or `read_s",
        ),
        ({}, r"'running_mean', got the keys \[\]"),
        ({"state_dict": {}, 3: 4}, r"'running_mean', got the keys \['state_dict', 3\]"),
        ({"running_mean": [0.0]}, "must contain 'running_var', got the layers"),
        (BatchNormAct2d(3), "only normalize, got BatchNormAct2d with ReLU"),
        (
            torch.nn.utils.parametrizations.weight_norm(torch.nn.BatchNorm1d(2)),
            "only normalize, got ParametrizedBatchNorm1d with ModuleDict",
        ),
        (
            {f"running_{k}": [1.0] for k in ("mean", "var")} | {"weight_orig": [1.0]},
            r"a plain layer at '', got \['weight_orig'\]",
        ),
        (
            type("Eps", (FrozenBatchNorm2d,), {})(3, eps=0.0),
            "`epsilon` must be positive",
        ),
    ],
)
def test_what_is_no_layer_is_refused(source, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_torch(source)


def test_messages_of_the_other_functions():
    with pytest.raises(TypeError, match="`values` must be a mapping, got Linear"):
        interop.torch_layers(torch.nn.Linear(2, 2))
    assert interop.torch_layers({3: 0, "bn.running_mean": 0}) == ["bn."]
    with pytest.raises(TypeError, match="`module` must be a BatchNorm module, got"):
        interop.check_torch({"running_mean": [0.0]}, [])
    with pytest.raises(ValueError, match=r"`module` .* got torch.float64. Enable"):
        interop.check_torch(torch.nn.BatchNorm1d(2).double(), [])
    with pytest.raises(TypeError, match="`prefix` must be a string, got 3"):
        layer = interop.Layer(jaxbn.init_state(1), axis=1, unbiased=True)
        interop.to_torch(layer, prefix=3)
