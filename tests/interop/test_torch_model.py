"""Whole PyTorch models in Flax: what is matched, refused, and the same outputs."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from extras import needs
from flax import nnx

import jaxbn.interop
import jaxbn.linen
import jaxbn.nnx

torch = needs("torch")


class Torch(torch.nn.Module):
    def __init__(self, *, eps=1e-5):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8, eps=eps)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.bn2 = torch.nn.BatchNorm2d(8, eps=eps)
        self.fc = torch.nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Linen(nn.Module):
    features: int = 8

    @nn.compact
    def __call__(self, x):
        norm = {"use_running_average": True, "activation": "relu"}
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = jaxbn.linen.BatchNorm(**norm)(x)
        x = nn.Conv(self.features, (3, 3), feature_group_count=2)(x)
        x = jaxbn.linen.BatchNorm(**norm)(x)
        return nn.Dense(5)(x.mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, norm=nnx.BatchNorm, **options):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([norm(8, rngs=rngs, **options) for _ in range(2)])
        self.second = nnx.Conv(8, 8, (3, 3), feature_group_count=2, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.first(x), use_running_average=True))
        x = nnx.relu(self.norms[1](self.second(x), use_running_average=True))
        return self.head(x.mean((1, 2)))


RULES = {"conv1": "first", "conv2": "second", r"bn(\d)": r"norms/\1", "fc": "head"}


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    made = Torch()
    with torch.no_grad():
        made.train()(torch.randn(16, 3, 6, 6) * 2 + 1)  # statistics of its own
        for norm in (made.bn1, made.bn2):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    return made.eval()


IMAGES = np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)


def variables(model=None):
    made = (model or Linen()).init(jax.random.key(0), IMAGES.transpose(0, 2, 3, 1))
    return jax.tree.map(np.asarray, made)


def test_a_linen_model_by_order_and_shape(module):
    found = jaxbn.interop.from_torch(module, into=variables())
    assert found.matched == {
        "conv1": "Conv_0", "bn1": "BatchNorm_0", "conv2": "Conv_1",
        "bn2": "BatchNorm_1", "fc": "Dense_0",
    }  # fmt: skip
    assert found.unused == found.untouched == []

    def run(x):
        return Linen().apply(found.model, x.transpose(0, 2, 3, 1))

    assert jaxbn.interop.check_torch_model(module, run, [IMAGES]) < 1e-5


@pytest.mark.parametrize("kind", [nnx.BatchNorm, jaxbn.nnx.BatchNorm])
def test_an_nnx_model_by_rules(module, kind):
    def path(prefix):
        numbers = {"bn1": "norms/0", "bn2": "norms/1"}
        return numbers.get(prefix, RULES.get(prefix))

    net = Nnx(kind)
    found = jaxbn.interop.from_torch(module.state_dict(), into=net, rules=path)
    assert found.model is net
    assert found.untouched == []

    def run(x):
        return net(x.transpose(0, 2, 3, 1))

    assert jaxbn.interop.check_torch_model(module, run, [IMAGES]) < 1e-5


def test_what_nothing_in_pytorch_fills_is_named():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.embed, self.slope = nnx.Embed(5, 2, rngs=rngs), nnx.PReLU()
            self.dense, self.drop = nnx.Linear(2, 2, rngs=rngs), nnx.Dropout(0.5)
            self.factors = nnx.List([nnx.Param(np.ones(3))])

    found = jaxbn.interop.from_torch(torch.nn.Linear(2, 2), into=Net())
    assert found.matched == {"": "dense"}
    assert sorted(found.untouched) == ["embed", "factors", "slope"]


def test_slopes_of_prelu():
    class Sloped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.PReLU()(nn.Dense(2)(nn.PReLU()(nn.Dense(3)(x))))

    made = [torch.nn.Linear(5, 3), torch.nn.PReLU(init=0.3)]
    made += [torch.nn.Linear(3, 2), torch.nn.PReLU(init=0.1)]
    source, rows = torch.nn.Sequential(*made), IMAGES.reshape(-1, 6)[:, :5]
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(5, 3, rngs=rngs), nnx.PReLU()]
    layers += [nnx.Linear(3, 2, rngs=rngs), nnx.PReLU()]
    for given in (source, source.state_dict()):
        into = Sloped().init(jax.random.key(0), rows)
        found = jaxbn.interop.from_torch(given, into=into)
        assert found.unused == found.untouched == []
        run = functools.partial(Sloped().apply, found.model)
        assert jaxbn.interop.check_torch_model(source, run, [rows]) < 1e-5
        net = nnx.Sequential(*map(nnx.clone, layers))
        jaxbn.interop.from_torch(given, into=net)
        assert jaxbn.interop.check_torch_model(source, net, [rows]) < 1e-5
    with pytest.raises(
        ValueError, match=r"\['1'\] for \[\] of \('negative_slope', \(5,"
    ):
        source = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.PReLU(5))
        jaxbn.interop.from_torch(source, into=nnx.Sequential(*layers[:2]))


def test_a_layer_without_running_statistics_gives_its_scale_and_bias():
    source = torch.nn.BatchNorm2d(3, track_running_stats=False)
    with torch.no_grad():
        source.weight.normal_()
    net = jaxbn.nnx.BatchNorm(3, axis=1, update_statistics=False, rngs=nnx.Rngs(0))
    for rules in (None, {"": ""}):
        net.scale[...] *= 0
        jaxbn.interop.from_torch(source, into=net, rules=rules)
        assert jaxbn.interop.check_torch_model(source, net, [IMAGES]) < 1e-5
    with pytest.raises(ValueError, match="pass the module of a layer without any"):
        jaxbn.interop.from_torch(source.state_dict(), into=net, rules={"": ""})


def test_transposed_convolutions_are_turned_as_they_are_in_nnx():
    class Turned(nnx.Module):
        def __init__(self):
            options = {"padding": "VALID", "rngs": nnx.Rngs(0)}
            self.a = nnx.ConvTranspose(2, 2, (3, 3), **options)
            self.b = nnx.ConvTranspose(2, 2, (3, 3), transpose_kernel=True, **options)

    net = Turned()
    made = [torch.nn.ConvTranspose2d(2, 2, 3) for _ in range(2)]
    source = torch.nn.Sequential(*made)
    jaxbn.interop.from_torch(source, into=net)

    def run(x):
        return net.b(net.a(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)

    images = [IMAGES[:, :2]]
    assert jaxbn.interop.check_torch_model(source, run, images) < 1e-5


def test_rules_may_leave_layers_out(module):
    rules = {r"bn(\d)": r"BatchNorm_\1"}
    with pytest.raises(ValueError, match="`rules` must lead to layers of `into`, got"):
        jaxbn.interop.from_torch(module, into=variables(), rules=rules)
    before = variables()
    found = jaxbn.interop.from_torch(module, into=before, rules={"bn1": "BatchNorm_1"})
    assert found.unused == ["conv1", "conv2", "bn2", "fc"]
    assert set(found.untouched) == {"Conv_0", "BatchNorm_0", "Conv_1", "Dense_0"}
    mean = found.model["batch_stats"]["BatchNorm_1"]["mean"]
    np.testing.assert_allclose(mean, module.bn1.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(before["batch_stats"]["BatchNorm_1"]["mean"], 0)


REFUSED = {
    "other shapes": (
        lambda m: {"source": m, "into": variables(Linen(features=4))},
        "`source` must have as many layers as `into` of each kind and shape",
    ),
    "two for one path": (
        lambda m: {"source": m, "into": variables(), "rules": {".*": "Dense_0"}},
        "`rules` must give each layer a path of its own",
    ),
    "wrong kind": (
        lambda m: {"source": m, "into": variables(), "rules": {"fc": "Conv_0"}},
        r"`source` must have a kernel of shape \(3, 3, 3, 8\) for 'Conv_0'",
    ),
    "another epsilon": (
        lambda m: {"source": Torch(eps=1e-3), "into": Nnx(), "rules": RULES | {
            "bn1": "norms/0", "bn2": "norms/1"
        }},
        "`into` must have epsilon=0.001 at",
    ),
    "transposed": (
        lambda m: {
            "source": torch.nn.ConvTranspose2d(8, 3, 3, bias=False),
            "into": variables(),
            "rules": {"": "Conv_0"},
        },
        "`source` must have no transposed convolution for linen",
    ),
    "not transposed there": (
        lambda m: {
            "source": torch.nn.ConvTranspose2d(8, 3, 3, bias=False),
            "into": Nnx(),
            "rules": {"": "first"},
        },
        "`into` must have a convolution at 'first' that is transposed where ''",
    ),
    "half a layer": (
        lambda m: {"source": {"a.weight": np.ones(8), "a.running_var": np.ones(8)},
                   "into": variables(), "rules": {"a": "BatchNorm_0"}},
        r"`rules` must leave out what cannot be converted, got 'BatchNorm_0' for 'a'",
    ),
    "rules of nothing": (
        lambda m: {"source": m.bn1, "rules": {}},
        "`rules` must be None without `into`, got",
    ),
    "a prefix beside": (
        lambda m: {"source": m, "into": variables(), "prefix": "bn1."},
        "`prefix` must be empty with `into`, got 'bn1.'",
    ),
    "rules that are a number": (
        lambda m: {"source": m, "into": variables(), "rules": 3},
        "`rules` must be a mapping, got 3",
    ),
    "a pattern that is none": (
        lambda m: {"source": m, "into": variables(), "rules": {"(": "fc"}},
        "`rules` must be a regular expression, got",
    ),
    "a group that is none": (
        lambda m: {"source": m, "into": variables(), "rules": {"fc": r"\9"}},
        "`rules` must lead to paths with groups of their patterns, got",
    ),
    "a path that is a number": (
        lambda m: {"source": m, "into": variables(), "rules": lambda prefix: 5},
        "`rules` must lead to paths or None, got 5",
    ),
    "no numbers": (
        lambda m: {"source": {"fc.weight": "x"}, "into": variables()},
        r"`source\['fc.weight'\]` must be an array of numbers",
    ),
    "no model": (lambda m: {"source": m, "into": 3}, "`into` must be variables of"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(module, name):
    make, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=message):
        jaxbn.interop.from_torch(**make(module))


@pytest.mark.parametrize(
    ("function", "batches", "message"),
    [
        (3, [IMAGES], "`function` must be a function of a batch, got 3"),
        (lambda x: x, [], "`batches` must contain a batch, got none"),
        (lambda x: x, ["a"], r"`batches\[0\]` must be an array of numbers"),
        (lambda x: x[:, 0], [IMAGES], r"`function` must return shape \(4, 5\)"),
    ],
)
def test_wrong_checks_have_messages(module, function, batches, message):
    with pytest.raises((TypeError, ValueError), match=message):
        jaxbn.interop.check_torch_model(module, function, batches)


def test_a_difference_that_is_not_finite_is_shown(module):
    def broken(x):
        return np.full((len(x), 5), np.nan, np.float32)

    assert np.isnan(jaxbn.interop.check_torch_model(module, broken, [IMAGES] * 2))
