"""The parts of `train`: data, net, loop and summary."""

import itertools
import json
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from train_runs import small_plans

from experiments.claims.lab import engine
from experiments.claims.lab.optimizers import OPTIMIZERS
from experiments.common.data import TRAIN_SIZES, load
from experiments.common.errors import UserError
from experiments.digits import results, summary
from experiments.digits.config import TrainConfig
from experiments.nets import small as models
from experiments.nets.small import NORMS, Conv, ResidualNet


def rows(arm, *accuracy):
    """The lines of a run: the accuracy of every start at each evaluation."""
    return [
        {
            "arm": arm,
            "start": start,
            "step": 10 * n,
            "seconds": n / 10,
            "train_loss": value if n else None,
            "test_loss": value,
            "test_accuracy": value,
        }
        for n, values in enumerate(accuracy)
        for start, value in enumerate(values)
    ]


def table(**arms):
    found = [row for arm, values in arms.items() for row in rows(arm, *values)]
    return summary.table(found, lr=0.1)


def test_the_digits_are_split_anew_for_every_start_and_by_class():
    data = load("digits", starts=3, seed=0)
    assert data.inputs.shape == (1797, 8, 8, 1)
    assert data.train.shape == (3, TRAIN_SIZES["digits"])
    for train, test in zip(data.train, data.test, strict=True):
        assert sorted([*train, *test]) == list(range(1797))
        counts = np.bincount(data.labels[test])
        assert np.abs(counts - np.bincount(data.labels) / 5).max() < 1
    assert len({tuple(sorted(test)) for test in data.test}) == 3


def test_changed_data_is_refused(monkeypatch):
    import mnist1d.data

    made = {"x": np.ones((2, 40)), "x_test": np.ones((1, 40))}
    made |= {"y": np.zeros(2, int), "y_test": np.zeros(1, int)}
    monkeypatch.setattr(mnist1d.data, "make_dataset", lambda: made)
    with pytest.raises(UserError, match="`--data mnist1d` must have the SHA-256"):
        load("mnist1d", starts=1, seed=0)


@pytest.fixture(scope="module")
def plans():
    return small_plans(TrainConfig(starts=2, batch_size=479))


def test_both_arms_start_from_the_same_kernels_and_see_the_same_batches(plans):
    first, second = (engine.begin(plans[arm])[0].model.params for arm in plans)
    assert set(second) <= set(first)
    for layer in second:
        kernel = second[layer]["kernel"]
        np.testing.assert_array_equal(first[layer]["kernel"], kernel)
        assert (kernel[0] != kernel[1]).any()
    orders = (next(engine.stream(plan)) for plan in plans.values())
    np.testing.assert_array_equal(*orders)


def test_a_pass_takes_every_example_once(plans):
    plan = plans["bn"]
    order = [*itertools.islice(engine.stream(plan), 6)]
    first, second = (np.concatenate(order[n : n + 3], 1) for n in (0, 3))
    for one in (first, second):
        np.testing.assert_array_equal(np.sort(one), np.sort(plan.splits.train))
    assert (first != second).any(1).all()


def test_only_kernels_decay():
    params = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    tx = OPTIMIZERS["adamw of kernels"]
    update, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert update["layer"]["kernel"].all() and not update["layer"]["bias"].any()


SHAPES = [(1, (8, 8)), (2, (8, 8)), (2, (40,)), (2, (7,))]


@pytest.fixture(scope="module")
def convolved():
    """The outputs of both convolutions for each stride and space, by one program."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.standard_normal(shape, np.float32)

    given = [
        (normal(2, *space, 3), normal(*[3] * len(space), 3, 5)) for _, space in SHAPES
    ]

    @jax.jit
    def both(given):
        found = []
        for (stride, space), (x, kernel) in zip(SHAPES, given, strict=True):
            theirs = nn.Conv(5, [3] * len(space), strides=stride, padding=1)
            variables = {"params": {"kernel": kernel, "bias": jnp.arange(5.0)}}
            nets = Conv(5, stride), theirs
            found.append([net.apply(variables, x) for net in nets])
        return found

    return dict(zip(SHAPES, both(given), strict=True))


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_the_convolution_is_that_of_flax(case, convolved):
    got, want = convolved[case]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("space", [(8, 8), (40,)])
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_gives_logits(norm, space):
    x = jnp.ones((4, *space, 1))
    net, key = ResidualNet(norm), jax.random.key(0)
    logits, variables = jax.eval_shape(lambda: net.init_with_output(key, x, train=True))
    assert logits.shape == (4, 10)
    assert ("batch_stats" in variables) == (norm == "bn")


def test_an_unknown_norm_is_named():
    net, key = ResidualNet("batch"), jax.random.key(0)
    with pytest.raises(ValueError, match=r"`norm` must be one of 'bn'.*got 'batch'"):
        jax.eval_shape(lambda: net.init(key, jnp.ones((2, 8, 8, 1)), train=True))


def test_batch_norm_is_that_of_jaxbn():
    assert models.BatchNorm.__module__ == "jaxbn.linen"


def test_the_threshold_is_reached_at_the_first_evaluation_at_or_above_it():
    found = table(bn=([0.1, 0.2], [342 / 360, 0.9], [0.9, 0.94]))
    assert found.reached("bn", summary.THRESHOLD).tolist() == [10, math.inf]
    arm = summary.summarize(found, "bn")
    assert (arm.reached, arm.steps.low, arm.steps.high) == (1, 10, math.inf)
    assert arm.seconds.low == 0.1


def test_the_interval_is_the_t_interval():
    values = np.array([1.0, 2.0, 3.0])
    found = msgspec.structs.astuple(summary.interval(values, -9, 9))
    half = 4.302652729911275 / math.sqrt(
        3
    )  # t quantile 0.975 with 2 degrees of freedom
    np.testing.assert_allclose(found, (2, 2 - half, 2 + half))
    assert summary.interval(values, 0, 3) == summary.Interval(2, 0, 3)


def test_the_table_says_not_reached():
    found = table(bn=([0.1, 0.1], [0.99, 0.97]), none=([0.1] * 2, [0.5] * 2))
    arms = {arm: summary.summarize(found, arm) for arm in ("bn", "none")}
    text = results.rendered(found, arms, {"bn": 1.0, "none": 1.0})
    assert re.search("none +0 of 2 +not reached +not reached", text)
    assert "no start reached 95 % with both" in text


def test_a_run_that_diverged_is_reported_and_leaves_valid_files(tmp_path):
    lines = rows("none", [0.1], [0.1], [0.1])
    for row in lines:
        row |= {"test_loss": None, "train_loss": None}
    measured = summary.Measured(lines, {"none": 1.0}, {"none": 1.0})
    config = TrainConfig(norm="none", out=tmp_path)
    text = results.write(config, measured, {"none": 1}, (1437, 360))
    assert "10.0 [n/a], 1 diverged" in text and "not reached" in text
    found = json.loads((tmp_path / "summary.json").read_text())["arms"]["none"]
    assert found["diverged"] == 1 and found["steps"]["median"] is None


def test_the_ratio_of_steps_is_paired_by_start():
    found = table(
        bn=([0, 0], [1, 0], [1, 1], [1, 1], [1, 1]),
        none=([0, 0], [0, 0], [0, 0], [0, 0], [1, 1]),
    )
    _, ratio, both = summary.compare(found, "bn", "none")
    assert (ratio, both) == (3.0, 2)  # 40 / 10 and 40 / 20
