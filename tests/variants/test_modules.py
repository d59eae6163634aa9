"""The modules hold the variables of the functions, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn.deploy import linen_model, nnx_model, recalibrate
from jaxbn.variants.blend import eval_blend
from jaxbn.variants.domains import domain_batch_norm, domain_batch_norm_inference
from jaxbn.variants.ghost import ghost_batch_norm
from jaxbn.variants.renorm import (
    batch_renorm,
    batch_renorm_inference,
    init_renorm_state,
)
from jaxbn.variants.schedule import renorm_schedule
from jaxbn.variants.timestep import (
    timestep_batch_norm,
    timestep_batch_norm_inference,
)

C, D, T = 3, 2, 4
DOMAIN = np.array([0, 1, 0, 1, 1, 0])
X = np.random.default_rng(0).normal(1, 2, (6, 5, C)).astype(np.float32)
MASK = np.random.default_rng(1).random((6, 5, 1)) < 0.8
KIND = {"momentum": 0.9, "epsilon": 1e-3, "activation": "relu", "debias": True}


def renorm_evaluation(*arrays, epsilon, **options):
    return batch_renorm_inference(*arrays, **options)


def blended(*arrays, **options):
    return eval_blend(*arrays, alpha=0.3, where=MASK, **options)


# name: (arguments of the module, of the call, state, training, evaluation, scale)
CASES = {
    "GhostBatchNorm": (
        {"ghost_batch_size": 2, "update": "sequential"}, {}, jaxbn.init_state(C),
        functools.partial(ghost_batch_norm, ghost_batch_size=2, update="sequential"),
        jaxbn.batch_norm_inference, jnp.ones(C),
    ),
    "BatchRenorm": (
        {"r_max": 1.5, "d_max": 0.5}, {}, init_renorm_state(C),
        functools.partial(batch_renorm, r_max=1.5, d_max=0.5),
        renorm_evaluation, jnp.ones(C),
    ),
    "TimestepBatchNorm": (
        {"max_steps": T}, {"t": 2}, jaxbn.init_state((T, C)),
        timestep_batch_norm, timestep_batch_norm_inference, jnp.full(C, 0.1),
    ),
    "DomainBatchNorm": (
        {"num_domains": D, "shared_affine": False}, {"domain": DOMAIN},
        jaxbn.init_state((D, C)), domain_batch_norm, domain_batch_norm_inference,
        jnp.ones((D, C)),
    ),
    "EvalBlendBatchNorm": (
        {"alpha": 0.3}, {}, jaxbn.init_state(C), jaxbn.batch_norm, blended,
        jnp.ones(C),
    ),
}  # fmt: skip


def expected(name, x):
    """Two steps of training, and evaluation."""
    _, which, state, train, evaluate, scale = CASES[name]
    affine, kind = (scale, jnp.zeros_like(scale)), {**KIND, **which}
    _, state = train(x, state, *affine, where=MASK, **kind)
    y, state = train(2 * x, state, *affine, where=MASK, **kind)
    del kind["momentum"], kind["debias"]
    return y, state, evaluate(x, state, *affine, **kind)


def by_linen(name, x):
    arguments, which, state, *_ = CASES[name]
    layer = getattr(jaxbn.linen, name)(**arguments, **KIND)
    variables = layer.init(jax.random.key(0), x, True, **which)
    step = functools.partial(layer.apply, mutable="batch_stats", mask=MASK, **which)
    _, new = step(variables, x, False)
    variables = {**variables, **new}
    y, new = step(variables, 2 * x, False)
    variables = {**variables, **new}
    stats = dict(variables["batch_stats"])
    stats.pop("alpha", None)
    got = [stats[next(k for k in stats if k.startswith(f))] for f in state._fields]
    return y, type(state)(*got), layer.apply(variables, x, True, mask=MASK, **which)


def by_nnx(name, x):
    arguments, which, state, *_ = CASES[name]
    layer = getattr(jaxbn.nnx, name)(C, **arguments, **KIND, rngs=nnx.Rngs(0))
    layer(x, mask=MASK, **which)
    y = layer(2 * x, mask=MASK, **which)
    layer.eval()
    suffix = "_of_each" if hasattr(layer, "mean_of_each") else ""
    got = [getattr(layer, field + suffix)[...] for field in state._fields]
    return y, type(state)(*got), layer(x, mask=MASK, **which)


def without_scale_and_bias(name, x):
    """At evaluation: both modules, and both ways to say so in nnx."""
    arguments, which, *_ = CASES[name]
    bare = {**arguments, "use_scale": False, "use_bias": False}
    layer = getattr(jaxbn.linen, name)(**bare)
    y, variables = layer.init_with_output(jax.random.key(0), x, True, **which)
    assert "params" not in variables
    other = getattr(jaxbn.nnx, name)(C, **bare, rngs=nnx.Rngs(0))
    assert not nnx.state(other, nnx.Param)
    other.eval()
    return y, other(x, **which)


def in_both_modes(name, x):
    arguments, which, *_ = CASES[name]
    layer = getattr(jaxbn.nnx, name)(
        C, **arguments, use_running_average=None, rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="No `use_running_average` argument"):
        layer(x, **which)
    view = nnx.view(layer, use_running_average=True)
    return view(x, **which), layer(x, True, **which)


@functools.cache
def results(run):
    """What `run` gives for all modules, from one program."""
    program = jax.jit(lambda x: {name: run(name, x) for name in CASES})
    return jax.device_get(program(X))


@pytest.mark.parametrize("run", [by_linen, by_nnx])
@pytest.mark.parametrize("name", CASES)
def test_the_module_is_the_function(name, run):
    want, got = results(expected)[name], results(run)[name]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want
    )


@pytest.mark.parametrize("name", CASES)
def test_scale_and_bias_may_be_left_out(name):
    by_linen, by_nnx = results(without_scale_and_bias)[name]
    np.testing.assert_allclose(by_nnx, by_linen, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_nnx_modes_and_their_message(name):
    np.testing.assert_array_equal(*results(in_both_modes)[name])


def test_renorm_follows_the_schedule_of_the_paper():
    schedule = renorm_schedule(start=1, r_end=3, d_end=2)
    layer = jaxbn.linen.BatchRenorm(**schedule._asdict(), debias=True)
    variables = jax.jit(lambda x: layer.init(jax.random.key(0), x, False))(X)
    state, ones, zeros = init_renorm_state(C), np.ones(C, "f"), np.zeros(C, "f")

    @jax.jit
    def step_of_module(variables, x):
        y, new = layer.apply(variables, x, False, mutable="batch_stats")
        return y, {**variables, **new}

    @jax.jit
    def step_of_function(state, x, bounds):
        return batch_renorm(x, state, ones, zeros, **bounds)

    for step in range(4):
        x = X + np.float32(step)
        y, variables = step_of_module(variables, x)
        bounds = {k: v(step) for k, v in schedule._asdict().items()}
        want, state = step_of_function(state, x, bounds)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_timesteps_in_a_lifted_scan_are_those_of_a_loop():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, inputs):
            t, x = inputs
            norm = jaxbn.linen.TimestepBatchNorm(max_steps=5, debias=True)
            return carry, norm(x, False, t=t)

    scan = nn.scan(
        Cell,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
    )
    scale, bias = np.full(C, 0.1, np.float32), np.zeros(C, np.float32)

    @jax.jit
    def scanned(x):
        steps = np.arange(5), x.swapaxes(0, 1)
        variables = Cell().init(jax.random.key(0), None, (0, x[:, 0]))
        (_, y), new = scan().apply(variables, None, steps, mutable="batch_stats")
        return y, new["batch_stats"]

    @jax.jit
    def step(states, x, t):
        return timestep_batch_norm(x, states, scale, bias, t=t)

    (y, new), states = scanned(X), jaxbn.init_state((5, C))
    y = np.asarray(y)
    for t in range(5):
        want, states = step(states, X[:, t], t)
        np.testing.assert_allclose(y[t], want, rtol=1e-5, atol=1e-6)
    (got,) = new.values()
    np.testing.assert_allclose(got["mean_of_each"], states.mean, rtol=1e-6)


def test_groups_on_eight_devices_are_those_of_one():
    x = np.random.default_rng(2).normal(size=(16, C)).astype(np.float32)
    layer = jaxbn.linen.GhostBatchNorm(ghost_batch_size=4)
    spread = jaxbn.linen.GhostBatchNorm(ghost_batch_size=4, axis_name="d")

    @jax.jit
    def on_one(x):
        variables = layer.init(jax.random.key(0), x, False)
        # `init` needs neither the axis nor the whole batch.
        again = spread.init(jax.random.key(0), x[:2], False)
        return variables, again, layer.apply(variables, x, False, mutable="batch_stats")

    variables, again, (want, state) = jax.device_get(on_one(x))
    jax.tree.map(np.testing.assert_array_equal, again, variables)

    def step(x):
        return spread.apply(variables, x, False, mutable="batch_stats")

    run = jax.pmap(step, axis_name="d")
    got, states = jax.device_get(run(x.reshape(8, 2, C)))
    np.testing.assert_allclose(got.reshape(16, C), want, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6),
        states,
        state,
    )


def test_recalibration_finds_those_with_one_mean_and_leaves_the_others():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jaxbn.linen.GhostBatchNorm(ghost_batch_size=2)(x, True)
            x = jaxbn.linen.BatchRenorm()(x, True)
            return jaxbn.linen.DomainBatchNorm(num_domains=D)(x, True, domain=0)

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.first = jaxbn.nnx.GhostBatchNorm(C, ghost_batch_size=2, rngs=rngs)
            self.second = jaxbn.nnx.BatchRenorm(C, rngs=rngs)
            self.third = jaxbn.nnx.DomainBatchNorm(C, num_domains=D, rngs=rngs)

        def __call__(self, x):
            return self.third(self.second(self.first(x)), domain=0)

    variables = jax.jit(Linen().init)(jax.random.key(0), X)
    net = Nnx(nnx.Rngs(0))
    net.eval()
    for model in (linen_model(Linen(), variables), nnx_model(net)):
        (state,) = recalibrate(model.collect, model.states, [X]).values()
        np.testing.assert_allclose(state.mean, X.mean((0, 1)), rtol=1e-5)


def made(library, name, **options):
    """A call of the layer, whichever library holds it."""
    kind = getattr(library, name)
    if library is jaxbn.nnx:
        return lambda x, **which: kind(C, rngs=nnx.Rngs(0), **options)(x, **which)
    layer = kind(use_running_average=False, **options)
    return lambda x, **which: layer.init_with_output(jax.random.key(0), x, **which)


@pytest.mark.parametrize("library", [jaxbn.linen, jaxbn.nnx])
@pytest.mark.parametrize(
    ("name", "options", "which", "error", "message"),
    [
        ("BatchRenorm", {"axis": 7}, {}, ValueError, r"`axis` must be in \[-3, 3\)"),
        (
            "TimestepBatchNorm",
            {"max_steps": T},
            {"t": 1.5},
            TypeError,
            "`t` must be an",
        ),
        ("EvalBlendBatchNorm", {"alpha": 2.0}, {}, ValueError, "`alpha` must be in"),
    ],
)
def test_mistakes_are_named(library, name, options, which, error, message):
    with pytest.raises(error, match=message):
        call = made(library, name, **options)
        jax.eval_shape(lambda: call(X, **which))


def test_ghost_groups_are_not_in_the_message_about_a_wrong_shape():
    with pytest.raises(ValueError, match=r"`scale` must have shape \(3,\).*axis 2"):
        ghost_batch_norm(
            X, jaxbn.init_state(C), np.ones(5, np.float32), ghost_batch_size=2
        )


@functools.cache
def one_batch_of_twenties():
    """The statistics of all modules after one batch, and those of Flax."""

    @jax.jit
    def run(x):
        found = {}
        for name, (arguments, which, *_) in CASES.items():
            arguments = {k: v for k, v in arguments.items() if k != "update"}
            layer = getattr(jaxbn.linen, name)(**arguments)
            variables = layer.init(jax.random.key(0), x, True, **which)
            step = functools.partial(layer.apply, variables, mutable="batch_stats")
            found[name, "linen"] = step(x, False, **which)[1]["batch_stats"]
            layer = getattr(jaxbn.nnx, name)(C, **arguments, rngs=nnx.Rngs(0))
            layer(x, **which)
            found[name, "nnx"] = nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
        layer = nn.BatchNorm(use_running_average=False)
        variables = layer.init(jax.random.key(0), x)
        return found, layer.apply(variables, x, mutable="batch_stats")[1]

    return jax.device_get(run(X + np.float32(20)))


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("name", CASES)
def test_modules_average_as_flax_does_unless_told_otherwise(name, library):
    found, flax = one_batch_of_twenties()
    of_each = "_of_each" if name in ("TimestepBatchNorm", "DomainBatchNorm") else ""
    means = found[name, library]["mean" + of_each]
    if name == "DomainBatchNorm":
        want = [0.01 * (X + 20)[k == DOMAIN].mean((0, 1)) for k in range(D)]
    elif name == "TimestepBatchNorm":
        want = np.zeros((T, C))
        want[CASES[name][1]["t"]] = flax["batch_stats"]["mean"]
    else:
        want = flax["batch_stats"]["mean"]
    np.testing.assert_allclose(means, want, rtol=1e-5)
    counts = [key for key in found[name, library] if key.startswith("count")]
    assert counts == (["count"] if name == "BatchRenorm" else [])


@pytest.mark.parametrize("library", [jaxbn.linen, jaxbn.nnx])
@pytest.mark.parametrize("name", CASES)
def test_every_module_takes_types_as_flax_does(name, library):
    arguments, which, *_ = CASES[name]
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    call = made(library, name, **arguments, **half)
    out = jax.eval_shape(lambda x: call(x, **which), X)
    y = out if library is jaxbn.nnx else out[0]
    assert y.dtype == jnp.bfloat16
    call = made(library, name, **arguments)
    out = jax.eval_shape(lambda x: call(x, **which), X.astype(jnp.bfloat16))
    y = out if library is jaxbn.nnx else out[0]
    assert y.dtype == jnp.float32  # that of the parameters


@pytest.mark.parametrize("name", ["BatchNorm", *CASES])
def test_interceptors_of_linen_see_one_call_of_a_layer(name):
    arguments, which, *_ = CASES.get(name, ({}, {}))
    layer, seen = getattr(jaxbn.linen, name)(**arguments), []

    def note(run, args, kwargs, call):
        seen.append(call.method_name)
        return run(*args, **kwargs)

    def apply(x):
        variables = layer.init(jax.random.key(0), x, True, **which)
        kept = {"capture_intermediates": lambda *_: True, "mutable": True}
        for inference in (True, False):
            _, new = layer.apply(variables, x, inference, **kept, **which)
        return new["intermediates"]

    with nn.intercept_methods(note):
        kept = jax.eval_shape(apply, X)
    assert seen == ["__call__"] * 3
    assert list(kept) == ["__call__"]


@pytest.mark.parametrize("name", ["BatchNorm", *CASES])
def test_nnx_capture_sees_the_output_of_a_layer(name):
    arguments, which, *_ = CASES.get(name, ({}, {}))

    def run(x):
        layer = getattr(jaxbn.nnx, name)(C, **arguments, rngs=nnx.Rngs(0))
        kept = {"method_outputs": nnx.Intermediate}
        y, found = nnx.capture(layer, nnx.Intermediate, **kept)(x, **which)
        return y, nnx.to_pure_dict(found)

    y, found = jax.eval_shape(run, X)
    assert found == {"__call__": (y,)}


@pytest.mark.parametrize("name", CASES)
def test_statistics_of_linen_that_were_cast_are_float32_after_a_batch(name):
    arguments, which, *_ = CASES[name]
    layer = getattr(jaxbn.linen, name)(**arguments, debias=True)

    def step(x):
        start = layer.init(jax.random.key(0), x, True, **which)
        cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), start)
        return layer.apply(cast, x, False, mutable="batch_stats", **which)[1]

    stats = jax.eval_shape(step, X.astype(jnp.bfloat16))["batch_stats"]
    assert len(stats) >= 3
    moving = {k: v.dtype for k, v in stats.items() if k != "alpha"}
    assert set(moving.values()) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("library", [jaxbn.linen, jaxbn.nnx])
@pytest.mark.parametrize(
    ("name", "options", "which", "message"),
    [
        (
            "GhostBatchNorm",
            {"save": "output"},
            {},
            "`save` must be the default for",
        ),
        ("BatchRenorm", {"save": "output"}, {}, "`save` must be the default for"),
        (
            "DomainBatchNorm",
            {"save": "output"},
            {"domain": 0},
            "`save` must be the",
        ),
        ("GhostBatchNorm", {"axis_groups": [[0]]}, {}, "`axis_groups` must be the"),
    ],
)
def test_options_without_effect_are_refused(library, name, options, which, message):
    arguments = {**CASES[name][0], **options}
    if library is jaxbn.nnx:
        layer = jaxbn.nnx.__dict__[name](C, **arguments, rngs=nnx.Rngs(0))
        run = functools.partial(layer, X, **which)
    else:
        layer = getattr(jaxbn.linen, name)(**arguments)
        variables = layer.init(jax.random.key(0), X, True, **which)
        run = functools.partial(
            layer.apply, variables, X, False, mutable="batch_stats", **which
        )
    with pytest.raises(ValueError, match=message):
        run()
