"""Folding an nnx model removes the layers, keeps the outputs and tells what stayed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_nets import draw
from random_nets import randomized_nnx as randomized

import jaxbn.nnx
from jaxbn.deploy import fold_nnx, nnx_model, recalibrate


class Own(nnx.BatchNorm):
    """A subclass with other defaults, which is called as its parent."""

    def __init__(self, features, *, rngs):
        super().__init__(features, momentum=0.9, epsilon=1e-3, rngs=rngs)


LAYERS = [Own, jaxbn.nnx.BatchNorm]


run = nnx.jit(lambda model, x: model(x))


class Net(nnx.Module):
    """After, before, without biases, and in the way of a residual connection."""

    def __init__(self, kind, rngs):
        def conv(*args, **options):
            return nnx.Conv(*args, use_bias=False, rngs=rngs, **options)

        self.first = conv(3, 6, (3, 3))
        self.up = nnx.ConvTranspose(
            6, 6, (2, 2), (2, 2), transpose_kernel=True, use_bias=False, rngs=rngs
        )
        self.two = conv(6, 4, (2, 2), padding="VALID", feature_group_count=2)
        self.padded = conv(4, 4, (3, 3))
        self.head = nnx.Linear(4, 3, use_bias=False, rngs=rngs)
        sizes = {"after": 6, "up_after": 6, "before": 6, "late": 4, "used": 4}
        self.norms = nnx.Dict({k: kind(n, rngs=rngs) for k, n in sizes.items()})
        self.list = nnx.List([kind(4, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.norms["after"](self.first(x)))
        x = nnx.relu(self.norms["up_after"](self.up(x)))
        x = nnx.relu(self.two(self.norms["before"](x)))
        x = nnx.relu(self.padded(self.norms["late"](x)))
        x = x + self.norms["used"](x)
        return self.head(self.list[0](x.mean((1, 2))))


def test_what_can_be_folded_is_compared_at_once():
    def listed(rngs):
        pairs = [
            (nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)) for _ in range(5)
        ]
        return nnx.Sequential(*(layer for pair in pairs for layer in pair))

    runs = []
    call = lambda model, x: runs.append(model) or model(x)  # noqa: E731
    _, report = fold_nnx(randomized(listed), draw(4, 3), call=call)
    assert len(report.folded) == 5
    assert len(runs) == 3  # to see the layers, before and after


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_stay_and_the_report_is_complete(kind):
    net, x = randomized(functools.partial(Net, kind)), draw(2, 5, 5, 3)
    want = run(net, x)
    folded, report = fold_nnx(net, x)
    assert {p: (f.layer, f.order) for p, f in report.folded.items()} == {
        "norms/after": ("first", "after"),
        "norms/up_after": ("up", "after"),
        "norms/before": ("two", "before"),
        "list/0": ("head", "before"),
    }
    assert set(report.kept) == {"norms/late", "norms/used"}
    assert "padded pads with zeros" in report.kept["norms/late"]
    assert report.error < 1e-5
    np.testing.assert_allclose(run(folded, x), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        run(net, x), want
    )  # The model itself stays as it was.

    left = [m for _, m in nnx.iter_modules(folded) if isinstance(m, kind)]
    assert len(left) == 2
    assert folded.padded.bias is None and not folded.padded.use_bias
    assert folded.first.bias is not None and net.first.bias is None
    graph, state = nnx.split(folded)
    again = jax.jit(lambda state: nnx.merge(graph, state)(x))(state)
    np.testing.assert_allclose(again, want, rtol=1e-5, atol=1e-5)


def test_activation_and_residual_of_the_layer_stay():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
            self.norm = jaxbn.nnx.BatchNorm(4, activation="relu", rngs=rngs)

        def __call__(self, x):
            return self.norm(self.conv(x), residual=x)

    net, x = randomized(Block), draw(2, 5, 5, 4)
    folded, report = fold_nnx(net, x)
    assert set(report.folded) == {"norm"} and not report.kept
    np.testing.assert_allclose(run(folded, x), run(net, x), rtol=1e-5, atol=1e-5)


def test_shared_layers_are_kept():
    class Shared(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(self.norm(self.dense(x))))

    _, report = fold_nnx(randomized(Shared), draw(2, 3))
    assert report.kept == {"norm": "it is called more than once"}


def test_named_arguments_and_layers_that_are_not_called():
    class Named(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.unused = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return self.norm(x=self.dense(inputs=x))

    net, x = randomized(Named), draw(4, 3)
    folded, report = fold_nnx(net, x)
    assert report.folded == {"norm": ("dense", "after", False)}
    assert list(report.kept) == ["unused"]
    np.testing.assert_allclose(run(folded, x), run(net, x), atol=1e-5)


def test_rounding_of_bfloat16_is_no_obstacle():
    low = {"dtype": jnp.bfloat16}

    def make(rngs):
        pairs = [
            (
                nnx.Linear(8, 8, rngs=rngs, **low),
                jaxbn.nnx.BatchNorm(8, rngs=rngs, **low),
            )
            for _ in range(3)
        ]
        return nnx.Sequential(*sum(pairs, ()))

    _, report = fold_nnx(randomized(make), draw(4, 8))
    assert len(report.folded) == 3 and not report.kept
    assert 0 < report.error < 0.03


def test_recalibrated_then_folded():
    def make(rngs):
        norm = jaxbn.nnx.BatchNorm(4, debias=True, rngs=rngs)
        return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), norm)

    net, x = randomized(make), draw(64, 3) * 2 + 1
    net.layers[1].scale[...], net.layers[1].bias[...] = jnp.ones(4), jnp.zeros(4)
    model = nnx_model(net)
    new = model.replace(recalibrate(model.collect, model.states, np.split(x, 4)))
    assert type(new.layers[1]) is jaxbn.nnx.BatchNorm
    inner = np.asarray(run(net.layers[0], x), np.float64)
    np.testing.assert_allclose(new.layers[1].mean[...], inner.mean(0), atol=3e-6)
    np.testing.assert_allclose(new.layers[1].var[...], inner.var(0), rtol=3e-6)
    folded, report = fold_nnx(new, x)
    assert list(report.folded) == ["layers/1"]
    want = (inner - inner.mean(0)) / np.sqrt(inner.var(0) + 1e-5)
    np.testing.assert_allclose(run(folded, x), want, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_training_mode_is_refused(kind):
    net = nnx.Sequential(kind(3, rngs=nnx.Rngs(0)))
    net.train()
    with pytest.raises(ValueError, match="`call` must run the model at evaluation"):
        fold_nnx(net, draw(2, 3))


def test_what_is_no_nnx_module_is_refused():
    with pytest.raises(TypeError, match=r"`model` must be an nnx.Module, got int"):
        jaxbn.deploy.fold_nnx(3, draw(2, 4))
