"""A folded layer does what the two layers did."""

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
    arrays = [jnp.asarray(v, jnp.float32) for v in (kernel, bias, x, scale, shift)]
    state = jaxbn.init_state(channels)._replace(mean=jnp.array(mean, jnp.float32))
    return *arrays, state._replace(var=jnp.array(var, jnp.float32)), groups, transposed


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


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_after_is_below_1e_5_for_every_kind(kind, with_bias):
    kernel, bias, x, scale, shift, state, groups, transposed = case(kind, "after")
    bias = bias if with_bias else None
    options = {"groups": groups, "transposed": transposed, "padding": "SAME"}
    want = jaxbn.batch_norm_inference(
        layer(x, kernel, bias, **options), state, scale, shift
    )
    new = fold(kernel, bias, freeze(state, scale, shift), groups=groups)
    assert np.abs(layer(x, *new, **options) - want).max() < 1e-5


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", [k for k in KINDS if "transposed" not in k])
def test_before_is_below_1e_5_without_padding(kind, with_bias):
    kernel, bias, x, scale, shift, state, groups, _ = case(kind, "before")
    bias = bias if with_bias else None
    options = {"groups": groups, "transposed": False, "padding": "VALID"}
    normalized = jaxbn.batch_norm_inference(x, state, scale, shift)
    want = layer(normalized, kernel, bias, **options)
    frozen = freeze(state, scale, shift)
    new = fold(kernel, bias, frozen, order="before", groups=groups)
    assert np.abs(layer(x, *new, **options) - want).max() < 1e-5


@pytest.mark.parametrize("order", ["after", "before"])
def test_ranks_need_no_promotion(order):
    kernel, bias, _, scale, shift, state, groups, _ = case("grouped 2-D", order)
    frozen, options = freeze(state, scale, shift), {"order": order, "groups": groups}
    want = fold(kernel, bias, frozen, **options)
    with jax.numpy_rank_promotion("raise"):
        got = fold(kernel, bias, frozen, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_types_are_those_of_the_layer():
    frozen = freeze(jaxbn.init_state(8))
    kernel, bias = jnp.ones((6, 8), jnp.bfloat16), jnp.ones(8, jnp.float16)
    assert [v.dtype for v in fold(kernel, bias, frozen)] == [jnp.bfloat16, jnp.float16]
    assert fold(kernel, None, frozen)[1].dtype == jnp.float32


def test_axis_names_the_outputs():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 6, 8)), jnp.float32)
    frozen = freeze(jaxbn.init_state(6)._replace(var=jnp.arange(1.0, 7)))
    got, _ = fold(kernel, None, frozen, axis=-2, input_axis=-1)
    want, _ = fold(kernel.swapaxes(1, 2), None, frozen)
    np.testing.assert_array_equal(got, want.swapaxes(1, 2))


def test_frozen_equals_inference_and_has_no_gradient():
    _, _, x, scale, shift, state, *_ = case("conv2d", "before")
    want = jaxbn.batch_norm_inference(x, state, scale, shift, activation="relu")
    got = freeze(state, scale, shift)(x, activation="relu")
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    grad = jax.grad(lambda s: freeze(state, s)(x).sum())(scale)
    np.testing.assert_array_equal(grad, 0)


def test_messages_name_the_argument():
    frozen = freeze(jaxbn.init_state(8))
    kernel = jnp.ones((6, 8))
    with pytest.raises(ValueError, match="`order` must be 'after' or 'before', got"):
        fold(kernel, None, frozen, order="around")  # pyright: ignore
    with pytest.raises(ValueError, match=r"`frozen` must have shape \(6,\)"):
        fold(kernel, None, frozen, order="before")
    with pytest.raises(ValueError, match="`groups` must divide the 8 outputs"):
        fold(kernel, None, frozen, groups=3)
    with pytest.raises(TypeError, match="`state` must be a BatchNormState, got int"):
        freeze(3)  # pyright: ignore
