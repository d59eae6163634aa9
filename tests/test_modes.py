"""Layers that do not update their statistics, and layers that are frozen."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drop_in import KEY, assert_close, normal
from extras import needs
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from other_models import NnxNet

import jaxbn
import jaxbn.linen
import jaxbn.nnx

X = normal((8, 3, 4))
MASK = np.arange(8)[:, None, None] % 3 != 0
KINDS = {
    "BatchNorm": ({}, {}),
    "GhostBatchNorm": ({"ghost_batch_size": 4}, {}),
    "BatchRenorm": ({"r_max": 2.0, "d_max": 1.0}, {}),
    "TimestepBatchNorm": ({"max_steps": 2}, {"t": 1}),
    "DomainBatchNorm": ({"num_domains": 2}, {"domain": 1}),
    "EvalBlendBatchNorm": ({"alpha": 0.5}, {}),
}

LINEN = ("BatchNorm", "BatchRenorm")  # the rest differs where it is shared
SWEPT = ("GhostBatchNorm", "TimestepBatchNorm", "EvalBlendBatchNorm")


def nnx_layer(kind, **options):
    rngs = nnx.Rngs(0)
    layer = getattr(jaxbn.nnx, kind)(4, rngs=rngs, **KINDS[kind][0], **options)
    for variable in jax.tree.leaves(nnx.state(layer, nnx.Param), is_leaf=is_variable):
        variable[...] = variable[...] + jnp.arange(4.0)
    return layer


def is_variable(leaf):
    return isinstance(leaf, nnx.Variable)


def both_of_nnx(layer, x, mode, **call):
    """A call, and its derivatives, with the statistics afterwards."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x):
        module = nnx.merge(graph, params, rest, copy=True)
        y = module(x, use_running_average=mode, **call)
        new = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        return jnp.sum(jnp.sin(y)), (y, new)

    return jax.grad(loss, (0, 1), has_aux=True)(params, x)


def both_of_linen(layer, variables, x, mode, **call):
    def loss(params, x):
        used = {**variables, "params": params}
        y, new = layer.apply(used, x, mode, mutable=["batch_stats"], **call)
        return jnp.sum(jnp.sin(y)), (y, new["batch_stats"])

    return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)


@functools.partial(jax.jit, static_argnames="kinds")
def all_modes(x, mask, kinds):
    """Each kind of layer in each mode, in one program."""
    found = {}
    for kind in kinds:
        options, call = KINDS[kind]
        call = {**call, "mask": mask}
        modes = {
            "train": {},
            "no update": {"update_statistics": False},
            "frozen": {"frozen": True},
            "affine": {"frozen": "statistics"},
        }
        for mode, more in modes.items():
            layer = nnx_layer(kind, **more)
            found["nnx", kind, mode] = both_of_nnx(layer, x, False, **call)
            if kind not in LINEN:
                continue
            module = getattr(jaxbn.linen, kind)(**options, **more)
            variables = module.init(KEY, x, True, **call)
            one = both_of_linen(module, variables, x, False, **call)
            found["linen", kind, mode] = one
        found["nnx", kind, "evaluate"] = both_of_nnx(nnx_layer(kind), x, True, **call)
        if kind in LINEN:
            one = both_of_linen(module.clone(frozen=False), variables, x, True, **call)
            found["linen", kind, "evaluate"] = one
    return found


@functools.cache
def results(kind):
    """What `all_modes` finds, compiled with the other kinds of the same suite."""
    swept = kind in SWEPT
    return all_modes(X, MASK, tuple(k for k in KINDS if (k in SWEPT) == swept))


OF_EACH = pytest.mark.parametrize(
    ("interface", "kind"),
    [
        pytest.param(interface, kind, marks=[pytest.mark.slow] * (kind in SWEPT))
        for interface, kinds in (("nnx", KINDS), ("linen", LINEN))
        for kind in kinds
    ],
)


@OF_EACH
def test_without_updates_training_is_the_same_and_statistics_stay(interface, kind):
    found = results(kind)
    gradients, (y, new) = found[interface, kind, "no update"]
    want_gradients, (want, moved) = found[interface, kind, "train"]
    assert_close((gradients, y), (want_gradients, want))
    _, (_, start) = found[interface, kind, "evaluate"]
    chex.assert_trees_all_equal(new, start)
    assert any((moved[k] != new[k]).any() for k in new)


@OF_EACH
def test_a_frozen_layer_evaluates_in_training(interface, kind):
    found = results(kind)
    want_gradients, want = found[interface, kind, "evaluate"]
    affine, frozen = (found[interface, kind, m] for m in ("affine", "frozen"))
    assert_close(affine, (want_gradients, want))
    (params, x), got = frozen
    assert_close((x, got), (want_gradients[1], want))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(params))
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(affine[0][0]))


@jax.jit
def frozen_layer(x, mean, var, scale, bias):
    layer = jaxbn.linen.BatchNorm(use_running_average=False, frozen=True)
    statistics = {"mean": mean, "var": var}
    params = {"scale": scale, "bias": bias}
    # Nothing is mutable.
    return layer.apply({"params": params, "batch_stats": statistics}, x)


@given(st.integers(0, 2**16), st.floats(-3, 4))
def test_a_frozen_layer_is_the_affine_map_in_float64(seed, exponent):
    """Torchvision: FrozenBatchNorm2d, y = (x - mean) / sqrt(var + eps) * w + b."""
    generator = np.random.default_rng(seed)
    mean, scale, bias = generator.standard_normal((3, 4)).astype(np.float32)
    mean = np.float32(10**exponent) * mean
    var = generator.uniform(0.1, 9, 4).astype(np.float32)
    x = (mean + generator.standard_normal((8, 3, 4))).astype(np.float32)
    wide = (a.astype(np.float64) for a in (x, mean, var, scale, bias))
    x64, mean64, var64, scale64, bias64 = wide
    want = (x64 - mean64) / np.sqrt(var64 + 1e-5) * scale64 + bias64
    got = frozen_layer(x, mean, var, scale, bias)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_frozen_layer_is_that_of_torch():
    torch = needs("torch")
    layer = nnx_layer("BatchNorm", frozen=True, axis=1)
    layer.mean[...], layer.var[...] = jnp.arange(4.0), jnp.arange(1.0, 5.0)
    theirs = torch.nn.BatchNorm1d(4).eval().requires_grad_(False)
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean"}
    for name, ours in {**names, "running_var": "var"}.items():
        value = torch.tensor(np.asarray(getattr(layer, ours)[...]))
        getattr(theirs, name).copy_(value)
    x = np.ascontiguousarray(X.transpose(0, 2, 1))
    given = torch.tensor(x, requires_grad=True)
    torch.sin(theirs(given)).sum().backward()
    (_, gradient), (y, _) = jax.jit(both_of_nnx, static_argnums=2)(layer, x, False)
    np.testing.assert_allclose(y, theirs(given).detach(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, given.grad, rtol=0, atol=1e-5)


def reductions(frozen):
    """The sums over rows in the compiled layer with its derivatives."""
    layer = jaxbn.linen.BatchNorm(frozen=frozen, use_running_average=False)
    variables = jax.jit(layer.init)(KEY, X)

    def step(params, x, cotangent):
        def run(params, x):
            return layer.apply({**variables, "params": params}, x)

        y, pull = jax.vjp(run, params, x)
        return y, pull(cotangent)

    text = jax.jit(step).lower(variables["params"], X, X).compile().as_text()
    return len(re.findall(r" (?:reduce|dot|custom-call)\(", text))


def test_a_frozen_layer_costs_no_reduction():
    assert reductions("statistics") > 0  # the gradients of scale and bias
    assert reductions(True) == 0


def test_a_frozen_layer_stays_so_in_training():
    layer = nnx_layer("BatchNorm")
    frozen = nnx.view(layer, frozen=True)
    frozen.train()
    y = nnx.jit(lambda module, x: module(x))(frozen, X)
    layer.eval()
    assert_close(y, layer(X))
    np.testing.assert_array_equal(layer.mean[...], 0)  # the same variable


def test_a_view_does_not_update_the_statistics_that_it_shares():
    layer = nnx_layer("BatchNorm")
    quiet = nnx.view(layer, update_statistics=False)
    quiet(X)
    np.testing.assert_array_equal(layer.mean[...], 0)
    layer(X)
    assert quiet.mean[...].all() and layer.update_statistics
    assert {"update_statistics", "frozen"} <= set(
        re.findall(r"\w+", nnx.view_info(layer))
    )


def test_the_optimizer_moves_what_is_not_frozen_only():
    model = jaxbn.nnx.convert(NnxNet(rngs=nnx.Rngs(0)), only="stacked/.*", frozen=True)
    params = nnx.state(model, nnx.Param)
    parts = params, nnx.state(model, nnx.BatchStat)
    mask = jaxbn.optim.frozen_mask(*parts, only="stacked/.*")
    decays = jaxbn.optim.weight_decay_mask(params)
    adam = optax.adamw(0.1, weight_decay=0.1, mask=decays)
    optimizer = optax.chain(adam, optax.freeze(mask))
    gradients = jax.tree.map(jnp.ones_like, params)
    before = nnx.to_pure_dict(params)

    @nnx.jit
    def step(model):  # nnx.Optimizer hands over parameters without their variables
        nnx.Optimizer(model, optimizer, wrt=nnx.Param).update(model, gradients)

    step(model)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    still = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    norm = {"scale": True, "bias": True}
    assert still.pop("stacked") == {
        "norm": norm,
        "dense": {"kernel": False, "bias": False},
    }
    assert not any(jax.tree.leaves(still))
    linen = {"params": {"a": {"scale": X}, "b": {"bias": X, "scale": X}}}
    linen["batch_stats"] = {"b": {"mean": X, "sigma": X}, "a": {"sigma": X}}
    got = jaxbn.optim.frozen_mask(linen["params"], linen["batch_stats"])
    assert got == {"a": {"scale": False}, "b": norm}
    with pytest.raises(ValueError, match=r"`only` must match.*got 'c'. Here .* 'b'"):
        jaxbn.optim.frozen_mask(linen["params"], linen["batch_stats"], only="c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"frozen": "all"},
            "`frozen` must be True, False or \"statistics\", got 'all'",
        ),
        ({"update_statistics": 1}, "`update_statistics` must be True or False, got 1"),
    ],
)
def test_messages(options, message):
    layer = nnx_layer("BatchNorm")
    calls = (
        lambda: nnx_layer("BatchNorm", **options),
        lambda: nnx.view(layer, **options),
        lambda: jaxbn.linen.BatchNorm(**options).init(KEY, X, True),
    )
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()
