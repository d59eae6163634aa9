"""What a target has fixed must be so in the layer, by one rule for all writers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import needs
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import interop

LAYER = interop.Layer(jaxbn.init_state(3), jnp.ones(3), jnp.zeros(3))


def counted(number):
    return LAYER.state._replace(count=jnp.full(3, number))


def made(kind=nnx, size=3, **options):
    return kind.BatchNorm(size, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"epsilon": 1e-3}, r"epsilon=0.001 as in `target`, got epsilon=1e-05\..*"),
        ({}, {"momentum": 0.9}, r"momentum=0.9 .*got momentum=0.99\. .*_replace\(mom"),
        ({"momentum": None}, {}, "momentum=0.99 .*got momentum=None"),
        ({"axis": 1}, {}, "axis=-1 .*got axis=1"),
        ({"unbiased": True}, {}, "unbiased=False .*got unbiased=True"),
        ({"debias": True}, {}, "debias=False .*got debias=True"),
        ({}, {"kind": jaxbn.nnx, "unbiased": True}, "unbiased=True .*got unbiased=Fal"),
        ({}, {"kind": jaxbn.nnx, "debias": True}, "debias=True .*got debias=False"),
        ({}, {"kind": jaxbn.nnx, "momentum": None}, "momentum=None .*got momentum=0.9"),
        (
            {"axis": 1, "debias": True},
            {"epsilon": 1.0},
            "epsilon=1.0, axis=-1, debias=",
        ),
    ],
)
def test_other_settings_are_refused(changes, options, message):
    with pytest.raises(ValueError, match=f"`layer` must have {message}"):
        interop.to_nnx(LAYER._replace(**changes), made(**options))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"size": 2}, r"shape \(3,\) like `layer` for its mean, got .*2"),
        ({}, {"size": 1}, r"shape \(3,\) like `layer` for its mean, got .*1"),
        (
            {},
            {"use_bias": False},
            "mean, var, scale, bias of `layer`, got mean, var, s",
        ),
        ({"scale": None}, {}, r"mean, var, bias of .*_replace\(scale=jnp.ones\(3\)\)"),
        ({"bias": None}, {}, r"mean, var, scale of .*_replace\(bias=jnp.zeros\(3\)\)"),
        (
            {"momentum": None},
            {"momentum": None},
            "var, count, .*, got mean, var, scale",
        ),
        ({}, {"kind": jaxbn.nnx, "activation": "relu"}, "no `activation`, got 'relu'"),
        ({"bias": jnp.full(3, 1e6)}, {"param_dtype": "float16"}, "float16 .*, got inf"),
    ],
)
def test_other_arrays_are_refused_and_nothing_is_written(changes, options, message):
    target = made(**options)
    state = LAYER.state._replace(mean=jnp.ones(3))
    with pytest.raises(ValueError, match=f"`target` .*{message}"):
        interop.to_nnx(LAYER._replace(state=state, **changes), target)
    np.testing.assert_array_equal(target.mean[...], 0)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"momentum": 0.9 + 1e-9}, {"momentum": 0.9}),
        ({"momentum": jnp.float32(0.9)}, {"momentum": 0.9}),
        ({"debias": True, "state": counted(5000)}, {}),
        ({"state": counted(5000)}, {"kind": jaxbn.nnx, "debias": True}),
        ({"unbiased": True, "momentum": 1.0}, {"momentum": 1.0}),
        (
            {"debias": True, "momentum": None},
            {"kind": jaxbn.nnx, "debias": False, "momentum": None},
        ),
        ({"axis": 1}, {"kind": jaxbn.nnx, "axis": (1,)}),
    ],
)
def test_what_makes_no_difference_is_written(changes, options):
    target = made(**options)
    layer = LAYER._replace(**changes)
    interop.to_nnx(layer._replace(scale=jnp.full(3, 2.0)), target)
    np.testing.assert_array_equal(target.scale[...], 2)


def test_a_layer_may_be_traced_and_a_target_abstract():
    target = nnx.eval_shape(made)
    jax.make_jaxpr(lambda s: interop.to_nnx(LAYER._replace(scale=s), made()))(
        LAYER.scale
    )
    interop.to_nnx(LAYER, target)
    np.testing.assert_array_equal(target.scale[...], 1)
    with pytest.raises(TypeError, match=r"`source.mean` must be an array of numbers"):
        interop.from_nnx(nnx.eval_shape(made))


PLACES = {
    "PyTorch": (interop.to_torch, LAYER._replace(axis=1, unbiased=True)),
    "Keras": (interop.to_keras, LAYER),
    "Haiku": (
        lambda layer: interop.to_haiku(layer, rank=4),
        LAYER._replace(debias=True),
    ),
}


@pytest.mark.parametrize(
    ("place", "changes", "message"),
    [
        ("PyTorch", {"axis": -1}, "axis=1 as in every layer of PyTorch, got axis=-1"),
        ("PyTorch", {"unbiased": False}, "unbiased=True .*, got unbiased=False"),
        ("PyTorch", {"debias": True}, "debias=False .*, got debias=True"),
        ("Keras", {"unbiased": True}, "unbiased=False .*Keras, got unbiased=True"),
        ("Keras", {"debias": True}, "debias=False .*, got debias=True"),
        ("Haiku", {"unbiased": True}, "unbiased=False .*Haiku, got unbiased=True"),
        ("Haiku", {"debias": False}, "debias=True .*, got debias=False"),
    ],
)
def test_what_a_framework_has_fixed_must_be_so(place, changes, message):
    write, layer = PLACES[place]
    write(layer)
    with pytest.raises(ValueError, match=f"`layer` must have {message}"):
        write(layer._replace(**changes))


@pytest.mark.parametrize("place", PLACES)
def test_what_a_framework_cannot_hold_is_refused(place):
    write, layer = PLACES[place]
    with pytest.raises(ValueError, match="`layer` must have values, got traced"):
        jax.eval_shape(lambda s: write(layer._replace(scale=s)), LAYER.scale)
    if place == "PyTorch":
        layer = layer._replace(momentum=None)
    else:
        with pytest.raises(ValueError, match=f"got None. {place} has no cumulative"):
            write(layer._replace(momentum=None))
    if place != "Keras":  # which does not count
        state = layer.state._replace(count=jnp.arange(3.0))
        with pytest.raises(ValueError, match=r"`layer.state.count` .*got 0 to 2\. "):
            write(layer._replace(state=state))


@pytest.mark.parametrize(("rank", "axis"), [(4, 2), (4, 0), (2, 3)])
def test_haiku_has_features_on_axis_1_or_the_last(rank, axis):
    layer = LAYER._replace(debias=True, axis=axis)
    with pytest.raises(
        ValueError, match=f"`rank` must be .*, got {rank} with .*{axis}"
    ):
        interop.to_haiku(layer, rank=rank)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"epsilon": 1e-3},
            {},
            "`layer` .*epsilon=1e-05 as in `target`, got epsilon=0",
        ),
        ({"momentum": 0.9}, {}, "`layer` .*momentum=0.99 .*, got momentum=0.9"),
        ({"momentum": None}, {}, "`layer` .*momentum=0.99 .*, got momentum=None"),
        ({"axis": -1}, {}, "`layer` .*axis=1 .*, got axis=-1"),
        ({"unbiased": True}, {}, "`layer` .*unbiased=False .*, got unbiased=True"),
        ({"debias": False}, {}, "`layer` .*debias=True .*, got debias=False"),
        ({}, {"mode": "ema"}, "`layer` .*debias=False .*, got debias=True"),
        ({}, {"input_size": 2}, r"`target` .*shape \(3,\) .* mean, got .*2"),
        (
            {},
            {"channelwise_affine": False},
            "`target` .*scale, bias of .*, got mean, v",
        ),
        (
            {"bias": None},
            {},
            "`target` must have mean, var, count, scale of `layer`, go",
        ),
    ],
)
def test_equinox_keeps_the_same_rule(changes, options, message):
    eqx = needs("equinox")
    options = {"input_size": 3, "axis_name": "b", "mode": "batch", **options}
    target = eqx.nn.make_with_state(eqx.nn.BatchNorm)(**options)
    layer = LAYER._replace(**{"axis": 1, "debias": True, **changes})
    with pytest.raises(ValueError, match=message):
        interop.to_equinox(layer, *target)
