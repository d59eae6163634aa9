"""Layers of models that others wrote become ours, with all that they have learned."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import assert_close, normal
from flax import nnx
from other_models import FEATURES, NnxNet

import jaxbn
import jaxbn.nnx
from jaxbn.nnx import convert

X = normal((16, FEATURES))
CALLS = {
    jaxbn.nnx.TimestepBatchNorm: {"t": 1},
    jaxbn.nnx.DomainBatchNorm: {"domain": 1},
}


def net():
    return NnxNet(rngs=nnx.Rngs(0))


def layer(**options):
    """A layer of Flax that is trained."""
    module = nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0), **options)
    for i, name in enumerate(("mean", "var", "scale", "bias")):
        getattr(module, name)[...] = 1.5 + 0.25 * i + jnp.arange(FEATURES)
    return module


@nnx.jit
def train(model, x):
    def loss(model):
        return jnp.sum(jnp.sin(model(x)))

    return nnx.value_and_grad(loss)(model)


@nnx.jit
def evaluate(model, x, **call):
    return model(x, use_running_average=True, **call)


def norms(model):
    kinds = nnx.BatchNorm, jaxbn.nnx.BatchNorm
    pairs = nnx.iter_modules(model)
    return {"/".join(map(str, p)): m for p, m in pairs if isinstance(m, kinds)}


def values(model, *filters):
    return nnx.to_pure_dict(nnx.state(model, *filters))


def test_a_model_trains_as_with_the_layers_of_flax():
    ours = net()
    before = {id(v) for v in jax.tree.leaves(ours, is_leaf=is_variable)}
    assert convert(ours) is ours
    assert {type(m) for m in norms(ours).values()} == {jaxbn.nnx.BatchNorm}
    assert {id(v) for v in jax.tree.leaves(ours, is_leaf=is_variable)} == before
    assert ours.bn is ours.sequential.layers[0]
    with jax.enable_x64(True):
        models = [in_float64(model) for model in (ours, net())]
        got, want = ((train(m, X.astype(np.float64)), values(m)) for m in models)
        chex.assert_trees_all_equal_structs(got[0][1], want[0][1])
        assert_close(jax.tree.leaves(got), jax.tree.leaves(want), tolerance=1e-11)


def in_float64(model):
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype("float64"), state))


def is_variable(leaf):
    return isinstance(leaf, nnx.Variable)


def test_options_reach_the_layers_that_are_meant_in_every_container():
    model, before = net(), values(net(), nnx.BatchStat)
    blocks = "listed/0/norm", "named/block/norm", "plain/0/a/norm", "plain/1/0"
    paths = {*blocks, "bn", "stacked/norm"}
    assert norms(convert(model, only="plain/.*", momentum=0.5)).keys() == paths
    assert norms(model)["plain/1/0"].momentum == 0.5
    assert norms(model)["plain/0/a/norm"].momentum == 0.5
    assert type(norms(model)["bn"]) is nnx.BatchNorm
    convert(model, update_statistics=False)
    assert [m.momentum for m in norms(model).values()].count(0.5) == 2
    train(model, X)
    chex.assert_trees_all_equal(values(model, nnx.BatchStat), before)


def test_stacked_layers_get_a_count_for_each():
    model = convert(net(), debias=True)
    train(model, X)
    assert model.stacked.norm.count.shape == (2, FEATURES)
    np.testing.assert_array_equal(model.stacked.norm.count[...], 1)


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("BatchNorm", {"activation": "relu"}),
        ("GhostBatchNorm", {"ghost_batch_size": 4}),
        ("BatchRenorm", {}),
        ("TimestepBatchNorm", {"max_steps": 2}),
        ("DomainBatchNorm", {"num_domains": 2, "shared_affine": False}),
        ("EvalBlendBatchNorm", {}),
    ],
)
def test_a_layer_becomes_any_kind_and_evaluates_as_before(to, options):
    kind = getattr(jaxbn.nnx, to)
    got = convert(layer(), to=kind, **options)
    want = evaluate(layer(), X)
    want = jnp.maximum(want, 0) if "activation" in options else want
    assert type(got) is kind
    assert_close(evaluate(got, X, **CALLS.get(kind, {})), want, tolerance=1e-5)
    before = values(got)
    again = convert(got, momentum=0.5)  # every kind takes other options
    assert type(again) is kind and again.momentum == 0.5
    chex.assert_trees_all_equal(values(again), before)


def test_shared_statistics_are_an_option():
    whole, parts = convert(layer()), convert(layer(), axis_name="d")

    @nnx.jit
    @nnx.vmap(in_axes=(None, 0), axis_name="d")
    def shared(model, x):
        return model(x)

    want = train(whole, X)
    got = shared(parts, X.reshape(4, 4, FEATURES))
    assert_close(values(parts), values(whole))
    assert_close(jnp.sum(jnp.sin(got)), want[0], tolerance=1e-5)


def test_a_model_without_values_is_converted_before_it_is_loaded():
    abstract = convert(nnx.eval_shape(lambda: net()), debias=True)
    graph, state = nnx.split(abstract)
    fresh = convert(net(), debias=True)
    loaded = nnx.merge(graph, nnx.state(fresh))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, nnx.state(fresh))
    assert_close(train(loaded, X)[0], train(fresh, X)[0])


class Extended(nnx.BatchNorm):
    """A subclass with code of its own."""


class Ours(jaxbn.nnx.BatchNorm):
    """Likewise."""


def norm_of():
    return nnx.BatchNorm(3, rngs=nnx.Rngs(0))


def several(**layers):
    return nnx.Dict(first=layer(), **layers)


@pytest.mark.parametrize(
    ("model", "arguments", "kind", "message"),
    [
        (layer(), {"to": nnx.BatchNorm}, TypeError, "`to` must be a class of layers"),
        (layer(), {"to": jaxbn.nnx.GhostBatchNorm}, TypeError, "`ghost_batch_size` mu"),
        (layer(), {"num_features": 3}, TypeError, "got 'num_features'. There are act"),
        (layer(), {"epsilon": -1.0}, ValueError, "`epsilon` must be positive"),
        (layer(), {"only": 3}, TypeError, "`only` must be a regular expression, got 3"),
        (layer(), {"only": "bn"}, ValueError, "got 'bn'. Here there are ''"),
        (nnx.Dict(), {}, ValueError, "`model` must contain batch .* `jaxbn.linen.conv"),
        (print, {}, TypeError, "`model` must be an nnx.Module"),
        (
            several(worse=Extended(3, rngs=nnx.Rngs(0))),
            {},
            TypeError,
            "`only` must leave out subclasses of layers, got 'worse' of Extended",
        ),
        (
            several(worse=Ours(3, rngs=nnx.Rngs(0))),
            {"momentum": 0.5},
            TypeError,
            "`only` must leave out subclasses of layers, got 'worse' of Ours",
        ),
        (
            several(worse=jaxbn.nnx.BatchRenorm(3, rngs=nnx.Rngs(0))),
            {"to": jaxbn.nnx.BatchNorm},
            ValueError,
            "`to` must keep the statistics of 'worse', which are mean, sigma, count",
        ),
        (
            several(worse=nnx.vmap(norm_of, out_axes=1, axis_size=2)()),
            {},
            ValueError,
            r"`model` must have the features .* last, got shape \(3, 2\) .* of 'worse'",
        ),
        (several(), {"debias": True}, ValueError, "`debias` must be False, and `mome"),
    ],
)
def test_messages_before_anything_is_changed(model, arguments, kind, message):
    with pytest.raises(kind, match=message):
        convert(model, **arguments)
    if isinstance(model, nnx.Dict) and "first" in model:
        assert type(model["first"]) is nnx.BatchNorm


def test_statistics_start_anew_and_nothing_else():
    model = nnx.Dict(a=layer(), b=convert(layer(), to=jaxbn.nnx.BatchRenorm))
    want = values(model)
    want["a"]["mean"], want["a"]["var"] = jnp.zeros(FEATURES), jnp.ones(FEATURES)
    jaxbn.nnx.reset_statistics(model, only="a")
    chex.assert_trees_all_equal(values(model), want)
    fresh = jaxbn.nnx.BatchRenorm(FEATURES, rngs=nnx.Rngs(0))
    jaxbn.nnx.reset_statistics(model)
    got = values(model["b"], nnx.BatchStat)
    chex.assert_trees_all_equal(got, values(fresh, nnx.BatchStat))


@pytest.mark.parametrize(("affine", "frozen"), [(True, True), (False, "statistics")])
def test_freeze_is_convert_by_another_name(affine, frozen):
    model = jaxbn.nnx.freeze(net(), affine=affine)
    layers = [
        m for _, m in nnx.iter_modules(model) if isinstance(m, jaxbn.nnx.BatchNorm)
    ]
    assert layers and {layer.frozen for layer in layers} == {frozen}
    with pytest.raises(TypeError, match="`affine` must be a bool, got 3"):
        jaxbn.nnx.freeze(model, affine=3)
