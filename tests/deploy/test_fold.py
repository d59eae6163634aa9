"""A folded layer does what the two layers did."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbn
from jaxbn.deploy import fold, freeze

# name: (kernel shape, groups, transposed)
KINDS = {
    "dense": ((6, 8), 1, False),
    "conv1d": ((3, 6, 8), 1, False),
    "conv2d": ((3, 3, 6, 8), 1, False),
    "conv3d": ((2, 3, 2, 6, 8), 1, False),
    "grouped 1-D": ((3, 3, 8), 2, False),
    "grouped 2-D": ((3, 3, 2, 9), 3, False),
    "grouped 3-D": ((2, 2, 2, 3, 4), 2, False),
    "depthwise": ((3, 3, 1, 6), 6, False),
    "depthwise, multiplier 2": ((3, 3, 1, 12), 6, False),
    "transposed 1-D": ((4, 6, 8), 1, True),
    "transposed 2-D": ((3, 3, 6, 8), 1, True),
    "transposed 3-D": ((2, 3, 2, 6, 8), 1, True),
}


def case(kind, order):
    shape, groups, transposed = KINDS[kind]
    rng = np.random.default_rng(len(kind))
    kernel = rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
    x = rng.normal(0, 1, (2, *[6] * (len(shape) - 2), shape[-2] * groups))
    channels = shape[-1] if order == "after" else x.shape[-1]
    mean, scale, shift = rng.normal(0, 1, (3, channels))
    var = rng.uniform(0.5, 2, channels)
    bias = rng.normal(0, 1, shape[-1])
    count = np.zeros(channels)
    arrays = (kernel, bias, x, scale, shift, mean, var, count)
    arrays = [v.astype(np.float32) for v in arrays]
    return *arrays[:5], jaxbn.BatchNormState(*arrays[5:]), groups, transposed


def layer(x, kernel, bias, *, groups, transposed, padding):
    if kernel.ndim == 2:
        y = jnp.matmul(x, kernel, precision="highest")
    elif transposed:
        strides = (2,) * (kernel.ndim - 2)
        y = lax.conv_transpose(x, kernel, strides, padding, precision="highest")
    else:
        space = "DHW"[-(kernel.ndim - 2) :]
        y = lax.conv_general_dilated(
            x,
            kernel,
            (1,) * len(space),
            padding,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
            feature_group_count=groups,
            precision="highest",
        )
    return y if bias is None else y + bias


def after(kernel, bias, x, scale, shift, state, groups, transposed):
    """The folded layer, and the two layers that it replaces."""
    options = {"groups": groups, "transposed": transposed, "padding": "SAME"}
    y = layer(x, kernel, bias, **options)
    new = fold(kernel, bias, freeze(state, scale, shift), groups=groups)
    want = jaxbn.batch_norm_inference(y, state, scale, shift)
    return layer(x, *new, **options), want


def before(kernel, bias, x, scale, shift, state, groups, transposed):
    options = {"groups": groups, "transposed": transposed, "padding": "VALID"}
    frozen = freeze(state, scale, shift)
    new = fold(kernel, bias, frozen, order="before", groups=groups)
    normalized = jaxbn.batch_norm_inference(x, state, scale, shift)
    return layer(x, *new, **options), layer(normalized, kernel, bias, **options)


@functools.cache
def results(order):
    """The results for every kind with and without bias, from one program."""
    cases = {
        kind: case(kind, order.__name__)
        for kind in KINDS
        if order is after or "transposed" not in kind
    }

    @jax.jit
    def run(arrays):
        out = {}
        for kind, (kernel, bias, *rest) in arrays.items():
            more = (*rest, *cases[kind][6:])
            out[kind, True] = order(kernel, bias, *more)
            out[kind, False] = order(kernel, None, *more)
        return out

    return jax.device_get(run({kind: arrays[:6] for kind, arrays in cases.items()}))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_after_is_below_1e_5_for_every_kind(kind, with_bias):
    got, want = results(after)[kind, with_bias]
    assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", [k for k in KINDS if "transposed" not in k])
def test_before_is_below_1e_5_without_padding(kind, with_bias):
    got, want = results(before)[kind, with_bias]
    assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize("order", ["after", "before"])
def test_ranks_need_no_promotion(order):
    kernel, bias, _, scale, shift, state, groups, _ = case("grouped 2-D", order)
    options = {"order": order, "groups": groups}

    def run(kernel, bias, *affine):
        return fold(kernel, bias, freeze(*affine), **options)

    arrays = (kernel, bias, state, scale, shift)
    want = jax.jit(run)(*arrays)
    with jax.numpy_rank_promotion("raise"):
        got = jax.jit(run)(*arrays)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_types_are_those_of_the_layer():
    def types(kernel, bias):
        frozen = freeze(jaxbn.init_state(8))
        return [v.dtype for v in jax.eval_shape(lambda: fold(kernel, bias, frozen))]

    kernel, bias = np.ones((6, 8), jnp.bfloat16), np.ones(8, np.float16)
    assert types(kernel, bias) == [jnp.bfloat16, jnp.float16]
    assert types(kernel, None)[1] == jnp.float32


def test_axis_names_the_outputs():
    rng = np.random.default_rng(0)
    state = jaxbn.init_state(6)._replace(var=np.arange(1, 7, dtype=np.float32))

    @jax.jit
    def run(kernel):
        frozen, flipped = freeze(state), kernel.swapaxes(1, 2)
        got, _ = fold(kernel, None, frozen, axis=-2, input_axis=-1)
        return got, fold(flipped, None, frozen)[0].swapaxes(1, 2)

    np.testing.assert_array_equal(*run(rng.normal(size=(3, 6, 8)).astype(np.float32)))


def test_frozen_equals_inference_and_has_no_gradient():
    _, _, x, scale, shift, state, *_ = case("conv2d", "before")

    @jax.jit
    def run(x, scale):
        options = {"activation": "relu"}
        return (
            freeze(state, scale, shift)(x, **options),
            jaxbn.batch_norm_inference(x, state, scale, shift, **options),
            jax.grad(lambda s: freeze(state, s)(x).sum())(scale),
        )

    got, want, grad = run(x, scale)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(grad, 0)


def test_messages_name_the_argument():
    frozen = freeze(jaxbn.init_state(8))
    kernel = np.ones((6, 8), np.float32)
    with pytest.raises(ValueError, match="`order` must be 'after' or 'before', got"):
        fold(kernel, None, frozen, order="around")  # pyright: ignore
    with pytest.raises(ValueError, match=r"`frozen` must have shape \(6,\)"):
        fold(kernel, None, frozen, order="before")
    with pytest.raises(ValueError, match="`groups` must divide the 8 outputs"):
        fold(kernel, None, frozen, groups=3)
    with pytest.raises(TypeError, match="`state` must be a BatchNormState, got int"):
        freeze(3)  # pyright: ignore
