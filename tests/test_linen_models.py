"""Models that others wrote run our layers, as they are."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import KEY, assert_close, normal
from other_models import FEATURES, LINEN, ResNet, number_of_norms
from sweeps import but_slow

import jaxbn
import jaxbn.linen
from jaxbn.linen import converting

X = normal((16, FEATURES))
MODEL = ResNet()


@jax.jit
def start(key, x):
    """The variables of all models, in one program."""
    return {name: model.init(key, x, train=False) for name, model in LINEN.items()}


@jax.jit
def train(variables, x):
    """Losses, new statistics and gradients of all models, in one program."""

    def loss(params, name):
        used = {**variables[name], "params": params}
        y, new = LINEN[name].apply(used, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), new["batch_stats"]

    step = jax.value_and_grad(loss, has_aux=True)
    return {name: step(variables[name]["params"], name) for name in variables}


@pytest.fixture(scope="module")
def variables():
    return start(KEY, X)


def statistics(variables):
    return {name: tree["batch_stats"] for name, tree in variables.items()}


def new_statistics(results):
    return {name: new for name, ((_, new), _) in results.items()}


@pytest.mark.slow
def test_models_train_as_with_the_layers_of_flax(variables):
    want = train(variables, X)  # compiled without a context first
    with converting():
        assert_close(train(variables, X), want, tolerance=3e-5)
        chex.assert_trees_all_equal(start(KEY, X), variables)


LIFTED, EVERY = (("DenseNet", "UNet"), 6), (tuple(LINEN), 14)


@pytest.mark.parametrize(("names", "norms"), but_slow([LIFTED, EVERY], [EVERY]))
def test_every_layer_is_exchanged_also_in_what_was_compiled_before(
    names, norms, variables
):
    variables = {name: variables[name] for name in names}
    train(variables, X)
    with converting(update_statistics=False):
        kept = new_statistics(train(variables, X))
    chex.assert_trees_all_equal(kept, statistics(variables))
    moved = new_statistics(train(variables, X))
    assert sum(map(number_of_norms, moved.values())) == norms
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, kept)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(kept), strict=True):
        assert not np.array_equal(a, b)


def test_frozen_models_evaluate_in_training(variables):
    """As timm's freeze_batch_norm_2d: no statistic moves, scale and bias do not."""
    variables = {name: variables[name] for name in ("DenseNet", "UNet")}
    with converting(frozen=True):
        results = train(noisy(variables), X)
    chex.assert_trees_all_equal(new_statistics(results), statistics(noisy(variables)))
    for name, (_, gradients) in results.items():
        mask = jaxbn.optim.frozen_mask(gradients, variables[name]["batch_stats"])
        still = jax.tree.map(lambda g: bool((g == 0).all()), gradients)
        frozen = jax.tree.map(lambda is_frozen, s: s or not is_frozen, mask, still)
        assert all(jax.tree.leaves(frozen))
        assert not all(jax.tree.leaves(still))


def noisy(variables):
    return jax.tree.map(lambda leaf: leaf + 0.5, variables)


def lowered(model, variables, **options):
    def step(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    with converting(**options):
        text = jax.jit(step).lower(variables, X).as_text()
    return re.sub(r" ?\{mhlo.frontend_attributes = \{[^}]*\}\}", "", text)


def test_the_program_is_that_of_a_model_written_with_our_layers(variables):
    ours = ResNet(norm=jaxbn.linen.BatchNorm)
    got, want = (lowered(m, variables["ResNet"]) for m in (MODEL, ours))
    # The counter of an automatic name is that of the class.
    assert got == want


def test_shared_statistics_are_an_option(variables):
    @jax.jit
    def both(variables, x):
        def apply(x):
            return MODEL.apply(variables, x, train=True, mutable=["batch_stats"])

        with converting():
            whole = apply(x)
        with converting(axis_name="d"):
            parts = jax.vmap(apply, axis_name="d", out_axes=(0, None))
            y, new = parts(x.reshape(4, 4, FEATURES))
        return (y.reshape(whole[0].shape), new), whole

    got, want = both(variables["ResNet"], X)
    assert_close(got, want)


def jitted(module, **options):
    return jax.jit(functools.partial(module.apply, mutable=["batch_stats"], **options))


def means(variables):
    """Whether the running mean of each layer of the model has moved."""
    _, new = jitted(MODEL, train=True)(variables["ResNet"], X)
    return {k: bool(v["mean"].any()) for k, v in new["batch_stats"].items()}


def test_the_inner_context_decides_about_what_it_means(variables):
    name = "bn_init"
    with converting(update_statistics=False), converting(only=name, momentum=0.5):
        assert means(variables) == {
            "bn_init": True,
            "BatchNorm_0": False,
            "norm_proj": False,
        }
    # The outer one means nothing that the inner one does not mean.
    with converting(only="BatchNorm.*"), converting(update_statistics=False):
        assert not any(means(variables).values())


def test_layers_of_ours_get_the_options_too():
    layer = jaxbn.linen.GhostBatchNorm(ghost_batch_size=4, use_running_average=False)
    variables = jax.jit(layer.init)(KEY, X)
    with converting(update_statistics=False):
        _, new = jitted(layer)(variables, X)
    chex.assert_trees_all_equal(new["batch_stats"], variables["batch_stats"])


def test_a_variant_takes_the_place(variables):
    layer, options = nn.BatchNorm(False), {"ghost_batch_size": 4, "momentum": 0.5}
    start = jax.jit(layer.init)(KEY, X)
    with converting(to=jaxbn.linen.GhostBatchNorm, **options):
        got = jitted(layer)(start, X)
    ours = jaxbn.linen.GhostBatchNorm(use_running_average=False, **options)
    assert_close(got, jitted(ours)(start, X), 0)


class Extended(nn.BatchNorm):
    """A subclass with code of its own."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(x)


def call_converting(model, x):
    with converting(momentum=0.5):
        return model(x)


def test_each_call_is_recorded_once():
    layer = nn.BatchNorm(False)
    variables = layer.init(KEY, X)
    with converting():
        kept = {"mutable": ["batch_stats", "intermediates"]}
        _, seen = layer.apply(variables, X, capture_intermediates=True, **kept)
        models = [jaxbn.deploy.linen_model(layer, variables)]
        counts = [models[0].collect(models[0].states, X)[""].count]
    options = {"call": call_converting}
    models = [jaxbn.deploy.linen_model(layer, variables, **options)]
    models += [jaxbn.deploy.linen_model(Extended(False), variables)]
    counts += [model.collect(model.states, X)[""].count for model in models]
    assert len(seen["intermediates"]["__call__"]) == 1
    np.testing.assert_array_equal(counts, np.full((3, FEATURES), len(X)))


def test_interceptors_around_the_context_hear_the_module_once_and_those_inside_ours():
    ours, heard = jaxbn.linen.EvalBlendBatchNorm, []
    model = nn.Sequential([nn.BatchNorm(False), jaxbn.linen.BatchNorm(False)])

    def note(run, args, kwargs, call):
        heard.append(type(call.module))
        return run(*args, **kwargs)

    def within(x):
        with converting(momentum=0.5), nn.intercept_methods(note), converting(to=ours):
            return model.init(KEY, x)

    with nn.intercept_methods(note):
        got = jax.eval_shape(within, X)["batch_stats"]
    kinds = [nn.Sequential, nn.BatchNorm, jaxbn.linen.BatchNorm]
    assert heard == [kind for kind in kinds for _ in range(2)]
    assert all("alpha" in got[name] for name in ("layers_0", "layers_1"))
    heard.clear()
    with converting(to=ours), nn.intercept_methods(note):
        jax.eval_shape(model.init, KEY, X)
    assert heard == [nn.Sequential, ours, ours]


def test_the_same_arguments_do_not_compile_again():
    traces = []

    @jax.jit
    def f(x):
        traces.append(x)
        return x

    def only(path):
        return True

    for _ in range(2):
        with converting(only=only, axis_groups=[[0, 1], [2, 3]]):
            f(X)
        with converting(momentum=jnp.float32(0.5)):  # cannot be compared
            f(X)
        f(X)
    assert len(traces) == 4


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"to": nn.BatchNorm}, TypeError, "`to` must be a class of layers of `jaxbn"),
        ({"to": jaxbn.linen.GhostBatchNorm}, TypeError, "`ghost_batch_size` must be"),
        ({"use_scale": False}, TypeError, "got 'use_scale'. There are activation"),
        ({"momentum": 2.0}, ValueError, r"`momentum` must be in \[0, 1\), got 2.0"),
        ({"frozen": "all"}, TypeError, '`frozen` must be True, False or "statistics"'),
        ({"only": "("}, ValueError, "`only` must be a regular expression, got"),
        ({"only": "bn"}, ValueError, "got 'bn'. Here there are ''"),
        ({}, TypeError, "`only` must leave out subclasses of layers, got ''"),
    ],
)
def test_messages(arguments, kind, message):
    layer = Extended(True) if not arguments else nn.BatchNorm(True)
    with pytest.raises(kind, match=message), converting(**arguments):
        layer.init(KEY, X)


def test_statistics_start_anew_and_nothing_else(variables):
    moved = noisy(variables["ResNet"])
    moved["batch_stats"]["other"] = {"sigma": jnp.ones(1)}
    got = jaxbn.linen.reset_statistics(moved, only="bn_.*|BatchNorm_0")
    want = {**moved, "batch_stats": dict(moved["batch_stats"])}
    for name in ("bn_init", "BatchNorm_0"):
        want["batch_stats"][name] = variables["ResNet"]["batch_stats"][name]
    chex.assert_trees_all_equal(got, want)
