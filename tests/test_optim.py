"""Optimizer helpers: masks, decay, the finite-step guard, gradient accumulation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from extras import needs
from flax import nnx
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxbn
from jaxbn import optim


def test_mask_spares_scales_and_biases_of_dictionaries_and_nnx_states():
    params = {"dense": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 1.0}, "a": [2.0]}
    assert optim.weight_decay_mask(params) == {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "a": [True],
    }
    net = nnx.Sequential(
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    )
    state = nnx.state(net, nnx.Param)
    mask = jax.tree_util.tree_leaves_with_path(optim.weight_decay_mask(state))
    kernels = [value for path, value in mask if "kernel" in str(path)]
    assert kernels == [True] and sum(value for _, value in mask) == 1


def test_the_weight_of_a_normalization_of_equinox_is_its_scale():
    equinox = needs("equinox")

    def make(key):
        norms = [equinox.nn.LayerNorm(3), jaxbn.equinox.BatchNorm(3, "batch")]
        return [equinox.nn.Linear(3, 3, key=key), *norms]

    model, _ = equinox.nn.make_with_state(make)(jax.random.key(0))
    params = jax.tree.map(lambda v: 3 * v, equinox.filter(model, equinox.is_array))
    linear, *norms = optim.weight_decay_mask(params)
    assert linear.weight and not linear.bias
    assert not any(norm.weight or norm.bias for norm in norms)
    decay = optim.decay_scale(0.1)
    zero = jax.tree.map(jnp.zeros_like, params)
    linear, *norms = decay.update(zero, decay.init(params), params)[0]
    assert not linear.weight.any()
    for norm in norms:
        np.testing.assert_allclose(norm.weight, 0.2, rtol=1e-6)
        assert not norm.bias.any()


def test_masked_decay_moves_only_the_kernel():
    params = {"dense": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    decay = optax.add_decayed_weights(0.1, mask=optim.weight_decay_mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    got, _ = decay.update(zero, decay.init(params), params)
    np.testing.assert_allclose(got["dense"]["kernel"], 0.1)
    np.testing.assert_array_equal(got["norm"]["scale"], 0)


@jax.jit
@jax.grad
def gradient_of_penalty(scale, rate, target):
    return rate / 2 * (scale - target) ** 2


@given(scale=st.floats(-5, 5), rate=st.floats(0, 1), target=st.floats(-2, 2))
def test_decay_of_scale_is_the_gradient_of_its_penalty(scale, rate, target):
    params = {"scale": jnp.float32(scale), "kernel": jnp.float32(scale)}
    zero = jax.tree.map(jnp.zeros_like, params)
    decay = optim.decay_scale(rate, target=target)
    got, _ = decay.update(zero, decay.init(params), params)
    want = gradient_of_penalty(scale, rate, target)
    np.testing.assert_allclose(got["scale"], want, rtol=1e-5, atol=1e-6)
    assert got["kernel"] == 0


def test_last_scale_of_each_block_starts_at_zero():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = x
            for _ in range(11):
                y = nn.BatchNorm(use_running_average=True)(nn.Dense(2)(y))
            return y + nn.BatchNorm(use_running_average=True, name="shortcut")(x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(Block()(Block()(x)))

    shapes = jax.eval_shape(Net().init, jax.random.key(0), np.ones((1, 2), "f"))
    params = jax.tree.map(lambda v: np.ones(v.shape, v.dtype), shapes["params"])
    got = optim.zero_last_scale(params, block=r"Block_\d+", norm=r"BatchNorm_\d+")
    flat = jax.tree_util.tree_leaves_with_path(got)
    zeros = [p for p, v in flat if p[-1].key == "scale" and not np.any(v)]
    assert [[k.key for k in p] for p in zeros] == [
        [block, "BatchNorm_10", "scale"] for block in ("Block_0", "Block_1")
    ]
    with pytest.raises(ValueError, match="`block` must match the name of a block"):
        optim.zero_last_scale(params, block="Nothing")


def test_the_box_around_a_scale_stays():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            ones = nn.with_partitioning(nn.initializers.ones, ("model",))
            return nn.BatchNorm(use_running_average=True, scale_init=ones)(x)

    x = jnp.ones((1, 2))
    params = {"Block_0": Block().init(jax.random.key(0), x)["params"]}
    got = optim.zero_last_scale(params, block="Block_0")
    assert jax.tree.structure(got) == jax.tree.structure(params)
    np.testing.assert_array_equal(got["Block_0"]["BatchNorm_0"]["scale"].value, 0)


def test_the_containers_around_a_scale_stay():
    layers = {"Block_0": {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}}

    class Block(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    for params, block in ((freeze(layers), "Block_0"), (nnx.state(Block()), "")):
        got = optim.zero_last_scale(params, block=block)
        assert jax.tree.structure(got) == jax.tree.structure(params)
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), got, params)
        assert sum(jax.tree.leaves(changed)) == 1


def test_an_infinity_of_the_optimizer_is_no_bad_step():
    old = {"best": jnp.array([jnp.inf, 1.0]), "w": jnp.ones(2)}
    for best, good in (
        ([jnp.inf, 2.0], True), ([3.0, 2.0], True), ([-jnp.inf, 1.0], False),
        ([jnp.inf, jnp.inf], False), ([jnp.nan, 1.0], False),
    ):  # fmt: skip
        new = {"best": jnp.array(best), "w": jnp.zeros(2)}
        assert optim.keep_finite(new, old)[1] == good


def test_a_mask_that_freezes_nothing_is_refused():
    params = {"bn": {"scale": 1.0, "bias": 0.0}, "dense": {"bias": 0.0}}
    statistics = {"bn": {"mean": 0.0, "var": 1.0}}
    variables = {"params": params, "batch_stats": statistics}
    optim.frozen_mask(params, statistics)
    assert optim.frozen_mask({}, statistics) == {}
    for wrong in ((params, variables), (variables, statistics), (variables, variables)):
        with pytest.raises(ValueError, match="`params` must have the scale or bias"):
            optim.frozen_mask(*wrong)


def test_a_bad_step_changes_nothing_and_a_good_one_everything():
    tx = optax.adam(0.1)
    params = {"w": np.ones(3, np.float32)}
    old = (params, tx.init(params), jaxbn.init_state(3))

    @jax.jit
    def step(old, x):
        params, opt_state, state = old

        def loss(params):
            y, new_state = jaxbn.batch_norm(x * params["w"], state)
            return jnp.sum(y**3), new_state

        grads, new_state = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        new = (optax.apply_updates(params, updates), opt_state, new_state)
        return optim.keep_finite(new, old, watch=grads), new

    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for bad in (np.nan, np.inf):
        spoiled = x.copy()
        spoiled[1, 2] = bad
        (kept, finite), _ = step(old, spoiled)
        assert not finite, bad
        jax.tree.map(np.testing.assert_array_equal, kept, old)
    (taken, finite), new = step(old, x)
    assert finite
    jax.tree.map(np.testing.assert_array_equal, taken, new)


def test_more_bad_values_than_an_int32_can_count():
    @jax.jit
    def step(v):
        watch = [jnp.broadcast_to(v, (2**30,))] * 3
        return optim.keep_finite(v, jnp.ones(()), watch=watch)

    kept, finite = step(jnp.float32(np.nan))
    assert not finite
    assert kept == 1


def test_nothing_to_watch_is_finite():
    new, finite = jax.jit(
        lambda new, old: optim.keep_finite(new, old, watch=[np.int32(3)])
    )(np.float32(1), np.float32(0))
    assert finite and new == 1


def test_members_of_an_axis_decide_together():
    new, old = np.array([1, np.nan, 3], np.float32), np.zeros(3, np.float32)

    def one(new, old):
        return optim.keep_finite(new, old, axis_name="data")

    kept, finite = jax.jit(jax.vmap(one, axis_name="data"))(new, old)
    np.testing.assert_array_equal(kept, old)
    assert not finite.any()


def train(params, state, x, y):
    """Loss with one batch normalization, and the moments of what it saw."""
    h = x @ params["w"]
    seen = jaxbn.moments(h)
    z, _ = jaxbn.batch_norm(h, state, params["scale"])
    return jnp.mean((z - y) ** 2), seen


@jax.jit
def of_micro_and_whole_batches(x, where):
    """For both kinds of momentum: states after micro batches and after whole ones."""
    out = {}
    for name, momentum in (("none", None), ("0.9", 0.9)):
        options = {"momentum": momentum, "unbiased": True}
        states = {"a": jaxbn.init_state(3)}
        whole, seen = states, optim.init_accumulation(states)
        for i in range(3):
            m = jaxbn.moments(x[i], where=where[i])
            whole = {"a": jaxbn.update(whole["a"], m, **options)}

            def step(carry, inputs):
                j, x, where = inputs
                part = {"a": jaxbn.moments(x, where=where)}
                return optim.accumulate(*carry, part, ready=j == 3, **options), None  # noqa: B023

            start = (seen, states)
            inputs = (np.arange(4), x[i], where[i])
            (seen, states), _ = jax.lax.scan(step, start, inputs)
        out[name] = states["a"], whole["a"]
    return out


@settings(max_examples=5)
@given(seed=st.integers(0, 99), masked=st.booleans())
def test_four_micro_batches_leave_the_running_state_of_one_batch(seed, masked):
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (3, 4, 6, 3)).astype(np.float32)
    where = rng.random((3, 4, 6, 1)) < (0.6 if masked else 2)
    for momentum, both in of_micro_and_whole_batches(x, where).items():
        for got, want in zip(*both, strict=True):
            # A first value four standard deviations away costs a batch a digit.
            np.testing.assert_allclose(
                got, want, rtol=1e-5, atol=1e-6, err_msg=f"{momentum = }"
            )


@pytest.mark.parametrize(
    ("state_type", "data_type"), [("bfloat16", "float32"), ("float32", "float64")]
)
def test_accumulation_is_carried_through_scan_in_its_types(state_type, data_type):
    with jax.enable_x64(data_type == "float64"):
        states = jaxbn.init_state(3, dtype=state_type)
        x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(data_type)

        def step(carry, inputs):
            i, x = inputs
            return optim.accumulate(*carry, jaxbn.moments(x), ready=i == 3), None

        start = (optim.init_accumulation(states), states)
        scan = jax.jit(lambda *a: jax.lax.scan(step, *a))
        (left, got), _ = scan(start, (np.arange(4), x))
        assert [v.dtype for v in left] == [jnp.float32] * 3
        want = np.asarray(x, np.float64).reshape(-1, 3)
        exact = {"rtol": 1e-2 if state_type == "bfloat16" else 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(np.asarray(got.mean, float), want.mean(0), **exact)
        np.testing.assert_allclose(np.asarray(got.var, float), want.var(0), **exact)
        assert got.mean.dtype == jnp.dtype(state_type)


def test_multi_steps_equals_one_step_on_the_ghost_batch():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(1, 2, (4, 8, 3)).astype(np.float32) for _ in range(2))
    params = {
        "w": rng.normal(size=(3, 3)).astype(np.float32),
        "scale": np.ones(3, np.float32),
    }
    steps = optax.MultiSteps(optax.adam(0.1), every_k_schedule=4)
    state = jaxbn.init_state(3)

    @jax.jit
    def micro_step(params, opt_state, seen, state, x, y):
        grads, m = jax.grad(train, has_aux=True)(params, state, x, y)
        updates, opt_state = steps.update(grads, opt_state, params)
        ready = steps.has_updated(opt_state)
        seen, state = optim.accumulate(seen, state, m, ready=ready)
        return optax.apply_updates(params, updates), opt_state, seen, state

    carry = (params, jax.jit(steps.init)(params), optim.init_accumulation(state), state)
    for i in range(4):
        assert i == 0 or np.max(carry[3].count) == 0
        carry = micro_step(*carry, x[i], y[i])

    def ghost(params):
        h = x @ params["w"]
        by_group = jax.tree.map(lambda v: jnp.broadcast_to(v, (4, 3)), state)
        scale = jnp.broadcast_to(params["scale"], (4, 3))
        z, _ = jaxbn.batch_norm(h, by_group, scale, axis=(0, 2))
        return jnp.mean((z - y) ** 2)

    @jax.jit
    def one_step(params):
        tx = optax.adam(0.1)
        updates, _ = tx.update(jax.grad(ghost)(params), tx.init(params), params)
        moments = jaxbn.moments(x @ params["w"])
        return optax.apply_updates(params, updates), jaxbn.update(state, moments)

    want, whole = one_step(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), carry[0], want
    )
    for got, want in zip(carry[3], whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert np.max(carry[2].count) == 0


def test_moments_of_another_layer_are_named():
    state = jaxbn.init_state(3)
    other = jax.jit(jaxbn.moments)(np.ones((4, 5), np.float32))
    seen = optim.init_accumulation(state)
    with pytest.raises(ValueError, match=r"`moments` must have the shape \(3,\)"):
        optim.accumulate(seen, state, other, ready=True)
