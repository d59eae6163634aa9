"""The same numbers as torch, keras and flax, where theirs are right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from extras import needs
from flax import linen as nn

import jaxbn

ROUNDING = 2.0**-24
STEPS = 10


def batches(seed=0):
    values = np.random.default_rng(seed).normal(1.5, 2, (STEPS, 8, 5, 6, 3))
    return values.astype(np.float32)


def parameters():
    generator = np.random.default_rng(7)
    scale, bias = generator.uniform(0.5, 2, 3), generator.normal(size=3)
    return scale.astype(np.float32), bias.astype(np.float32)


MASK = np.random.default_rng(3).random((8, 5, 6, 1)) < 0.7


@functools.cache
def ours(*, momentum, epsilon=1e-5, unbiased=False, masked=False):
    """Outputs of every step, then the state, with a plain moving average."""
    scale, bias = parameters()
    step = jax.jit(
        lambda x, state: jaxbn.batch_norm(
            x,
            state,
            scale,
            bias,
            momentum=momentum,
            epsilon=epsilon,
            where=MASK if masked else None,
            debias=False,
            unbiased=unbiased,
        )
    )
    state, outputs = jaxbn.init_state(3), []
    for x in batches():
        y, state = step(x, state)
        outputs.append(np.asarray(y))
    return outputs, state


def assert_same(got, want, terms=1.0):
    """Equal up to sqrt(n) roundings of the sums and a few more, in both libraries.

    `terms` is the size of a sum without cancellation, where that is larger.
    """
    want = np.asarray(want)
    rows = batches()[0].size // 3
    size = max(1 + np.abs(want).max(), terms)
    limit = 2 * reference.statistics_error(rows, np.float32) * size
    np.testing.assert_allclose(np.asarray(got), want, atol=limit, rtol=0)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.fixture(scope="module")
def torch_layer():
    torch = needs("torch")
    torch.set_num_threads(1)
    return torch, torch.nn.BatchNorm2d(3, eps=1e-5, momentum=0.1)


def load(torch, layer):
    layer.reset_running_stats()
    with torch.no_grad():
        for target, value in zip((layer.weight, layer.bias), parameters(), strict=True):
            target.copy_(torch.from_numpy(value))
    return layer


def test_training_and_running_statistics_equal_torch_over_ten_steps(torch_layer):
    torch, layer = torch_layer
    load(torch, layer).train()
    outputs, state = ours(momentum=0.9, unbiased=True)
    for x, y in zip(batches(), outputs, strict=True):
        assert_same(nchw(y), layer(torch.from_numpy(nchw(x).copy())).detach())
    assert_same(state.mean, layer.running_mean)
    assert_same(state.var, layer.running_var)
    assert int(state.count[0]) == int(layer.num_batches_tracked)


def test_the_cumulative_average_equals_torch(torch_layer):
    torch, _ = torch_layer
    layer = torch.nn.BatchNorm2d(3, momentum=None).train()
    for x in batches():
        layer(torch.from_numpy(nchw(x).copy()))
    _, state = ours(momentum=None, unbiased=True)
    assert_same(state.mean, layer.running_mean)
    assert_same(state.var, layer.running_var)


def test_inference_equals_torch(torch_layer):
    torch, layer = torch_layer
    load(torch, layer).train()
    for x in batches():
        layer(torch.from_numpy(nchw(x).copy()))
    layer.eval()
    x = batches(1)[0]
    _, state = ours(momentum=0.9, unbiased=True)
    infer = jax.jit(functools.partial(jaxbn.batch_norm_inference, axis=1))
    y = infer(nchw(x), state, *parameters())
    assert_same(y, layer(torch.from_numpy(nchw(x).copy())).detach())


def test_gradients_equal_torch(torch_layer):
    torch, layer = torch_layer
    load(torch, layer).train()
    x, ct = nchw(batches()[0]).copy(), nchw(batches(2)[0]).copy()
    leaf = torch.from_numpy(x).requires_grad_()
    layer.zero_grad()
    layer(leaf).backward(torch.from_numpy(ct))

    def loss(x, scale, bias):
        y, _ = jaxbn.batch_norm(x, jaxbn.init_state(3), scale, bias, axis=1)
        return jnp.sum(y * ct)

    got = jax.jit(jax.grad(loss, (0, 1, 2)))(x, *parameters())
    for value, want in zip(
        got, (leaf.grad, layer.weight.grad, layer.bias.grad), strict=True
    ):
        assert_same(value, want, terms=np.sqrt(np.sum(ct**2)))


def test_training_and_running_statistics_equal_keras_over_ten_steps(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = needs("keras")
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    layer.build((None, 5, 6, 3))
    layer.gamma.assign(parameters()[0])
    layer.beta.assign(parameters()[1])
    outputs, state = ours(momentum=0.9, epsilon=1e-3)
    for x, y in zip(batches(), outputs, strict=True):
        assert_same(y, keras.ops.convert_to_numpy(layer(x, training=True)))
    assert_same(state.mean, keras.ops.convert_to_numpy(layer.moving_mean))
    assert_same(state.var, keras.ops.convert_to_numpy(layer.moving_variance))


def test_masked_training_equals_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = needs("keras")
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    layer.build((None, 5, 6, 3))
    layer.gamma.assign(parameters()[0])
    layer.beta.assign(parameters()[1])
    outputs, state = ours(momentum=0.9, epsilon=1e-3, masked=True)
    mask = MASK[..., 0]
    for x, y in zip(batches(), outputs, strict=True):
        assert_same(y, keras.ops.convert_to_numpy(layer(x, training=True, mask=mask)))
    assert_same(state.mean, keras.ops.convert_to_numpy(layer.moving_mean))
    assert_same(state.var, keras.ops.convert_to_numpy(layer.moving_variance))


def flax_step():
    layer = nn.BatchNorm(
        use_running_average=False, momentum=0.9, use_fast_variance=False
    )
    scale, bias = parameters()
    params = {"scale": scale, "bias": bias}
    stats = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    return layer, params, stats


@pytest.mark.parametrize("masked", [False, True])
def test_training_and_running_statistics_equal_flax_over_ten_steps(masked):
    layer, params, stats = flax_step()
    mask = MASK if masked else None
    outputs, state = ours(momentum=0.9, masked=masked)

    @jax.jit
    def step(stats, x):
        variables = {"params": params, "batch_stats": stats}
        return layer.apply(variables, x, mask=mask, mutable=["batch_stats"])

    for x, y in zip(batches(), outputs, strict=True):
        want, changed = step(stats, x)
        stats = changed["batch_stats"]
        assert_same(y, want)
    assert_same(state.mean, stats["mean"])
    assert_same(state.var, stats["var"])


def test_gradients_equal_flax():
    layer, params, stats = flax_step()
    x, ct = batches()[0], batches(2)[0]

    def flax_loss(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        y, _ = layer.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(y * ct)

    def loss(x, scale, bias):
        return jnp.sum(jaxbn.batch_norm(x, jaxbn.init_state(3), scale, bias)[0] * ct)

    arguments = (x, params["scale"], params["bias"])
    derivatives = (jax.grad(f, (0, 1, 2)) for f in (loss, flax_loss))
    got, want = (jax.jit(f)(*arguments) for f in derivatives)
    for value, exact in zip(got, want, strict=True):
        assert_same(value, exact, terms=np.sqrt(np.sum(ct**2)))
