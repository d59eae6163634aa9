"""What folding an nnx model leaves as it is, where it looks, and what it refuses."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_nets import draw
from random_nets import randomized_nnx as randomized

import jaxbn.nnx
from jaxbn.deploy import fold_nnx

run = nnx.jit(lambda model, x: model(x))


def test_only_affine_maps_that_are_stored_are_folded():
    class Rectified(nnx.BatchNorm):
        def __call__(self, x):
            return nnx.relu(super().__call__(x))

    class Stay(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(5)])
            plain = {"use_bias": False, "rngs": rngs}
            self.local = jaxbn.nnx.BatchNorm(3, update_statistics=False, rngs=rngs)
            self.blend = jaxbn.nnx.EvalBlendBatchNorm(3, alpha=0.5, rngs=rngs)
            self.given = jaxbn.nnx.BatchNorm(3, **plain)
            self.more = Rectified(3, rngs=rngs)
            self.read = nnx.BatchNorm(3, **plain)

        def __call__(self, x):
            d = [dense(x) for dense in self.dense]
            y = self.local(d[0], False) + self.blend(d[1]) + self.given(d[2], bias=x)
            return y + self.more(d[3]) + self.read(d[4]) * self.read.scale[...]

    _, report = fold_nnx(randomized(Stay), draw(4, 3))
    assert not report.folded
    assert report.kept == {
        "local": "it normalizes with the statistics of the batch",
        "blend": "its class is EvalBlendBatchNorm, not BatchNorm itself",
        "given": "it is called with bias",
        "more": "its class Rectified has another __call__",
        "read": "folding into dense/4 fails: 'Rest' object has no attribute 'scale'",
    }


def test_training_that_moves_nothing_is_refused():
    norm = nnx.BatchNorm(3, momentum=1.0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="got training of 'layers/0'"):
        fold_nnx(nnx.Sequential(norm), draw(2, 3))


@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_stacked_layers_are_kept(lift):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    class Stacked(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.vmap(Block)(rngs.fork(split=2))
            self.last = Block(rngs)

        def __call__(self, x):
            def one(block, x):
                return block(x)

            if lift == "vmap":
                x = nnx.vmap(one, in_axes=(0, None))(self.blocks, x).mean(0)
            else:
                axes = {"in_axes": (0, nnx.Carry), "out_axes": nnx.Carry}
                x = nnx.scan(one, **axes)(self.blocks, x)
            return self.last(x)

    net, x = Stacked(nnx.Rngs(0)), draw(2, 3)
    net.eval()
    folded, report = fold_nnx(net, x)
    assert report.folded == {"last/norm": ("last/dense", "after", False)}
    assert "stacked variables" in report.kept["blocks/norm"]
    np.testing.assert_allclose(folded(x), net(x), rtol=1e-5, atol=1e-5)


def test_layers_are_replaced_wherever_they_are():
    class Tree(nnx.Module):
        def __init__(self, rngs):
            def pair():
                return nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

            self.dict = nnx.Dict(zip(("a/b", "a/c"), pair(), strict=True))
            self.plain = nnx.data(dict(zip(("keys", "items"), pair(), strict=True)))
            self.tuple = nnx.data(pair())
            self.same = self.tuple[1]

        def __call__(self, x):
            x = self.dict["a/c"](self.dict["a/b"](x))
            x = jnp.tanh(self.plain["items"](self.plain["keys"](x)))
            return jnp.tanh(self.same(self.tuple[0](x)))

    net, x = randomized(Tree), draw(4, 3)
    folded, report = fold_nnx(net, x)
    assert len(report.folded) == 3 and not report.kept
    assert folded.same is folded.tuple[1]
    assert not any(isinstance(m, nnx.BatchNorm) for _, m in nnx.iter_modules(folded))
    np.testing.assert_allclose(run(folded, x), run(net, x), atol=1e-5)
    # So that a folded model can be stored, and compiled once.
    assert nnx.graphdef(fold_nnx(net, x)[0]) == nnx.graphdef(folded)
    assert type(pickle.loads(pickle.dumps(folded.same))) is type(folded.same)


def test_padding_that_adds_no_zeros_is_no_obstacle():
    x = draw(2, 4, 4, 3)
    for size, padding, ok in [
        ((1, 1), "SAME", True),
        ((3, 3), "REFLECT", True),
        ((3, 3), "SAME", False),
        ((3, 3), [0, (1, 1)], False),
    ]:

        def make(rngs, size=size, padding=padding):
            conv = nnx.Conv(3, 3, size, padding=padding, rngs=rngs)
            return nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), conv)

        _, report = fold_nnx(randomized(make), x)
        assert bool(report.folded) is ok, (size, padding)


def test_statistics_that_are_not_numbers_are_named():
    net = nnx.Sequential(
        nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    )
    net.eval()
    net.layers[1].mean[...] = jnp.array([jnp.nan, 0, 0])
    _, report = fold_nnx(net, draw(2, 3))
    assert "must be finite" in report.kept["layers/1"]
