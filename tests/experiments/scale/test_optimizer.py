"""The optimizer is the SGD of the papers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.errors import UserError
from experiments.scale import config, optimizer

OPTIONS = config.Optimizer(
    batch_size=256, lr=0.1, lr_batch_size=128, warmup_steps=4, steps=20
)


def test_the_learning_rate_rises_and_falls_to_zero():
    rate = optimizer.learning_rate(OPTIONS)
    got = [float(rate(step)) for step in range(25)]
    rising = [0.2 * t / 4 for t in range(4)]
    falling = [0.1 * (1 + np.cos(np.pi * t / 16)) for t in range(17)]
    np.testing.assert_allclose(got, [*rising, *falling, 0, 0, 0, 0], atol=1e-7)
    assert rate(jnp.int32(3)).dtype == jnp.float32


def test_the_learning_rate_can_stay_unscaled_and_warm_up_for_all_steps():
    options = config.Optimizer(batch_size=512, lr=0.1, lr_batch_size=0, steps=10)
    assert optimizer.learning_rate(options)(0) == jnp.float32(0.1)
    rising = config.Optimizer(warmup_steps=10, steps=10)
    assert optimizer.learning_rate(rising)(9) == pytest.approx(0.09)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_a_loop_in_float64(nesterov):
    options = config.Optimizer(
        lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.03, steps=12
    )
    generator = np.random.default_rng(0)
    params = {
        "conv": {"kernel": generator.standard_normal((3, 2))},
        "norm": {"scale": np.ones(2), "bias": generator.standard_normal(2)},
        "head": {"kernel": generator.standard_normal((2, 2)), "bias": np.ones(2)},
    }
    tx = optimizer.make_optimizer(options)
    ours = jax.tree.map(jnp.float32, params)
    memory = tx.init(ours)
    rows = [
        (params, group, name, np.zeros_like(value))
        for group, values in params.items()
        for name, value in values.items()
    ]
    for step in range(5):
        gradient = jax.tree.map(lambda w: np.sin(w) + 0.1, params)
        change, memory = tx.update(
            jax.tree.map(lambda w: jnp.sin(w) + 0.1, ours), memory, ours
        )
        ours = optax.apply_updates(ours, change)
        rate = 0.1 * (1 + np.cos(np.pi * step / 12)) / 2
        for tree, group, name, speed in rows:
            w, g = tree[group][name], gradient[group][name]
            g = g + 0.03 * w if name == "kernel" else g
            speed[...] = 0.8 * speed + g
            tree[group][name] = w - rate * (g + 0.8 * speed if nesterov else speed)
    for group, values in params.items():
        for name, want in values.items():
            np.testing.assert_allclose(ours[group][name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 21}, "`--warmup-steps` must be at most 20, the number of"),
        ({"warmup_steps": -1}, "`--warmup-steps` must be at least 0, got -1"),
        ({"steps": 0}, "`--steps` must be at least 1, got 0."),
        ({"batch_size": 0}, "`--batch-size` must be at least 1, got 0."),
        ({"momentum": 1.0}, "`--momentum` must be below 1, got 1.0."),
        ({"lr": float("nan")}, "`--lr` must be finite, got nan."),
        ({"weight_decay": -1e-4}, "`--weight-decay` must be at least 0, got -0.0001"),
    ],
)
def test_a_number_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        optimizer.make_optimizer(config.Optimizer(**({"steps": 20} | options)))
