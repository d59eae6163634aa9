"""Folding a model keeps its outputs and tells what it could not fold."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_nets import draw
from random_nets import randomized_linen as randomized

import jaxbn.linen
from jaxbn.deploy import fold_linen, strip_linen


def run(net, variables, x):
    return jax.jit(net.apply)(variables, x)


class Net(nn.Module):
    """After, before, shared, and in the way of a residual connection."""

    layer: type = nn.BatchNorm
    with_norm: bool = True
    use_bias: bool = False

    def norm(self, x, name):
        if not self.with_norm and name not in ("late", "used"):
            return x
        return self.layer(use_running_average=True, name=name)(x)

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), use_bias=self.use_bias, name="first")(x)
        x = nn.relu(self.norm(x, "after"))
        x = nn.ConvTranspose(6, (2, 2), (2, 2), transpose_kernel=True, name="up")(x)
        x = nn.relu(self.norm(x, "up_after"))
        x = self.norm(x, "before")
        x = nn.Conv(4, (2, 2), padding="VALID", feature_group_count=2, name="two")(x)
        x = nn.relu(x)
        x = nn.Conv(4, (3, 3), name="padded")(self.norm(x, "late"))
        x = nn.Conv(4, (1, 1), name="four")(nn.relu(x))
        x = x + self.norm(x, "used")
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Own(nn.BatchNorm):
    """A subclass with other defaults, which is called as its parent."""

    epsilon: float = 1e-3


@pytest.mark.parametrize("layer", [Own, jaxbn.linen.BatchNorm])
def test_outputs_stay_and_the_report_is_complete(layer):
    net = Net(layer)
    x = draw(2, 5, 5, 3)
    variables = randomized(net, x)
    folded, report = fold_linen(net, variables, x)
    want = run(net, variables, x)
    assert {p: (f.layer, f.order) for p, f in report.folded.items()} == {
        "after": ("first", "after"),
        "up_after": ("up", "after"),
        "before": ("two", "before"),
    }
    assert set(report.kept) == {"late", "used"}
    assert "padded pads with zeros" in report.kept["late"]
    assert "used elsewhere" in report.kept["used"]
    assert report.error < 1e-5
    np.testing.assert_allclose(run(net, folded, x), want, rtol=1e-5, atol=1e-5)

    stripped = strip_linen(folded, report)
    small = Net(layer, with_norm=False, use_bias=True)
    shapes = jax.eval_shape(small.init, jax.random.key(0), x)
    assert jax.tree.structure(stripped) == jax.tree.structure(shapes)
    np.testing.assert_allclose(run(small, stripped, x), want, rtol=1e-5, atol=1e-5)


def test_shared_and_stacked_layers_are_kept():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(3)
            norm = nn.BatchNorm(use_running_average=True)
            x = norm(dense(norm(dense(x))))
            stacked = nn.vmap(
                nn.BatchNorm,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
            )
            return stacked(use_running_average=True, name="stacked")(x)

    x = np.ones((2, 3), np.float32)
    variables = randomized(Shared(), x)
    same, report = fold_linen(Shared(), variables, x)
    assert report.kept["BatchNorm_0"] == "it is called more than once"
    assert not report.folded
    jax.tree.map(np.testing.assert_array_equal, same, variables)


class Lifted(nn.Module):
    """A block of the model, in a lifted transformation."""

    lift: Any
    use_running_average: bool = True

    @nn.compact
    def __call__(self, x):
        norm = jaxbn.linen.BatchNorm(use_running_average=self.use_running_average)
        return nn.Dense(2)(self.lift(nn.Sequential)([nn.Dense(3), norm])(x))


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_lifted_transformations_at_evaluation(lift):
    x = draw(4, 3)
    variables = randomized(Lifted(lift), x)
    want = run(Lifted(lift), variables, x)
    folded, report = fold_linen(Lifted(lift), variables, x)
    assert [f.order for f in report.folded.values()] == ["after"]
    assert not report.kept
    np.testing.assert_allclose(run(Lifted(lift), folded, x), want, atol=1e-5)
    with pytest.raises(ValueError, match="`call` must run the model at evaluation"):
        fold_linen(Lifted(lift, use_running_average=False), variables, x)


def test_a_model_without_batch_normalization_stays():
    x = np.ones((2, 3), np.float32)
    variables = randomized(nn.Dense(3), x)
    same, report = fold_linen(nn.Dense(3), variables, x)
    assert report == ({}, {}, 0.0)
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_named_arguments_and_layers_that_are_not_called():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(3)(inputs=x)
            return jaxbn.linen.BatchNorm(use_running_average=True)(x=y)

    x = draw(4, 3)
    variables = randomized(Named(), x)
    unused = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    variables["batch_stats"]["unused"] = unused
    folded, report = fold_linen(Named(), variables, x)
    assert report.folded == {"BatchNorm_0": ("Dense_0", "after", False)}
    assert list(report.kept) == ["unused"]
    want = run(Named(), variables, x)
    np.testing.assert_allclose(run(Named(), folded, x), want, atol=1e-5)


class Deep(nn.Module):
    """Six folds in a narrow type, and one that is in the way of a residual."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        for _ in range(6):
            x = nn.Dense(8, dtype=self.dtype)(x)
            norm = jaxbn.linen.BatchNorm(use_running_average=True, dtype=self.dtype)
            x = nn.relu(norm(x))
        x = nn.Dense(8, dtype=self.dtype)(x)
        y = nn.BatchNorm(use_running_average=True, dtype=self.dtype, name="used")(x)
        return nn.Dense(3)(x - 4 * y)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_rounding_of_narrow_types_is_no_obstacle(dtype):
    net, x = Deep(dtype), draw(4, 8)
    variables = randomized(net, x)
    _, report = fold_linen(net, variables, x)
    assert len(report.folded) == 6
    assert 0 < report.error < 4 * jnp.finfo(dtype).eps
    assert list(report.kept) == ["used"]
    assert "likely a value between the two is used elsewhere" in report.kept["used"]
    _, report = fold_linen(net, variables, x, tolerance=1e-6)
    assert any(f"likely rounding to {dtype}" in why for why in report.kept.values())


def test_boxes_stay_around_the_variables():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
            ones = nn.with_partitioning(nn.initializers.ones, ("model",))
            x = nn.Dense(3, kernel_init=kernel)(x)
            return nn.BatchNorm(use_running_average=True, scale_init=ones)(x)

    x = draw(4, 3)
    variables = randomized(Boxed(), x)
    folded, report = fold_linen(Boxed(), variables, x)
    assert report.folded == {"BatchNorm_0": ("Dense_0", "after", False)}
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    want = run(Boxed(), variables, x)
    np.testing.assert_allclose(run(Boxed(), folded, x), want, atol=1e-5)


def test_training_mode_is_refused():
    net = nn.BatchNorm(use_running_average=False)
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="`call` must run the model at evaluation"):
        fold_linen(net, randomized(net, x), x)
