"""Each domain is normalized as if it were alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

import jaxbn
from jaxbn.variants.domains import (
    domain_batch_norm,
    domain_batch_norm_inference,
    init_domain_state,
    strip_domain,
)

P = PartitionSpec
DOMAINS = 3


def case(seed=0, *, shared=True):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, DOMAINS, 24)
    x = rng.normal(size=(24, 4, 2)) + 3 * ids[:, None, None]
    scale, bias = rng.normal(size=(2, 2) if shared else (2, DOMAINS, 2))
    where = rng.random((24, 4, 1)) < 0.8
    where &= (ids < DOMAINS - 1)[:, None, None]  # nothing of the last one counts
    arrays = [v.astype(np.float32) for v in (x, scale, bias)]
    return *arrays, ids.astype(np.int32), where


def run(x, scale, bias, ids, where, axis_name=None):
    def loss(x, scale, bias):
        y, states = domain_batch_norm(
            x,
            init_domain_state(DOMAINS, 2),
            scale,
            bias,
            domain=ids,
            where=where,
            axis_name=axis_name,
        )
        return jnp.sum(jnp.sin(y) * where), (y, states)

    grads, (y, states) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return y, states, grads


def alone(x, scale, bias, ids, where):
    """One ordinary layer for each domain, on its examples only."""

    def loss(x, scale, bias):
        scales, biases = (jnp.broadcast_to(v, (DOMAINS, 2)) for v in (scale, bias))
        y, states = jnp.zeros_like(x), []
        for k in range(DOMAINS):
            mine = (ids == k)[:, None, None]
            state = jaxbn.init_state(2)
            arrays = (x, state, scales[k], biases[k])
            part, state = jaxbn.batch_norm(*arrays, where=mine & where)
            y = jnp.where(mine, part, y)
            states.append(state)
        states = jax.tree.map(lambda *v: jnp.stack(v), *states)
        return jnp.sum(jnp.sin(y) * where), (y, states)

    grads, (y, states) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return y, states, grads


def close(got, want, atol=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), got, want
    )


compiled, expected = jax.jit(run), jax.jit(alone)


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=4)
@given(seed=st.integers(0, 99))
def test_values_states_and_gradients_are_those_of_separate_layers(shared, seed):
    arrays = case(seed, shared=shared)
    # A gradient of scale sums 96 terms of size 10.
    close(compiled(*arrays), expected(*arrays), 2e-4)


@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_equals_float64_numpy(seed):
    x, scale, bias, ids, where = case(seed)
    y, states, _ = jax.device_get(compiled(x, scale, bias, ids, where))
    for k in range(DOMAINS - 1):
        rows = np.asarray(x, np.float64)[ids == k]
        values = rows[np.asarray(where)[ids == k][..., 0]]
        mean, var = values.mean(0), values.var(0)
        want = (rows - mean) / np.sqrt(var + 1e-5) * scale + bias
        np.testing.assert_allclose(y[ids == k], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(states.mean[k], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(states.var[k], var, rtol=1e-5)
    np.testing.assert_array_equal(states.count[-1], 0)


def test_one_domain_for_the_batch_is_an_ordinary_layer():
    x, scale, bias, _, _ = case()
    states = init_domain_state(DOMAINS, 2)

    @jax.jit
    def with_domain(k):
        return domain_batch_norm(x, states, scale, bias, domain=k)

    start = jaxbn.init_state(2)
    want, state = jax.jit(lambda x: jaxbn.batch_norm(x, start, scale, bias))(x)
    for k in (0, 2):
        got, new = with_domain(k)
        close(got, want)
        close(strip_domain(new, k), state)
        for other in {0, 1, 2} - {k}:
            close(strip_domain(new, other), start, 0)


def test_channels_first_activation_and_residual():
    x, scale, bias, ids, _ = case()

    @jax.jit
    def run(x):
        options, affine = {"activation": "relu", "domain": ids}, (scale, bias)
        call = functools.partial(domain_batch_norm, **options)
        states, flipped = init_domain_state(DOMAINS, 2), x.swapaxes(1, 2)
        want, _ = call(x, states, *affine, residual=2 * x)
        got, _ = call(flipped, states, *affine, residual=2 * flipped, axis=1)
        return got.swapaxes(1, 2), want

    close(*run(x))


def test_shard_map_equals_one_device():
    arrays = case(5)
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))
    specs = (P("d"), P(), P(), P("d"), P("d"))
    out = (P("d"), P(), (P("d"), P(), P()))

    def local(*args):
        return run(*args, axis_name="d")

    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)
    close(jax.jit(split)(*arrays), compiled(*arrays))


def test_second_order_equals_that_of_separate_layers():
    x, scale, bias, ids, where = case(6)

    def second(f):
        def grad(x):
            return f(x, scale, bias, ids, where)[2][0]

        return lambda x: jax.jvp(grad, (x,), (jnp.cos(x),))[1]

    got, want = jax.jit(lambda x: (second(run)(x), second(alone)(x)))(x)
    close(got, want, 1e-4)


def test_evaluation_and_export_of_the_clean_domain():
    x, scale, bias, ids, _ = case(7, shared=False)

    @jax.jit
    def train(x):
        states = init_domain_state(DOMAINS, 2)
        y, states = domain_batch_norm(x, states, scale, bias, domain=ids)
        infer = functools.partial(domain_batch_norm_inference, x, states, scale, bias)
        return y, states, infer(domain=ids), infer(domain=0)

    y, states, again, want = train(x)
    close(again, y)
    tree = {"state": states, "scale": scale, "shared": np.ones(2)}
    clean = strip_domain(tree, 0, num_domains=DOMAINS)
    got = jax.jit(jaxbn.batch_norm_inference)(
        x, clean["state"], clean["scale"], bias[0]
    )
    close(got, want)
    assert clean["shared"].shape == (2,)


def test_messages_name_the_argument():
    x, states = np.ones((4, 2), np.float32), init_domain_state(2, 2)
    with pytest.raises(ValueError, match="`num_domains` must be at least 1, got 0"):
        init_domain_state(0, 2)
    with pytest.raises(TypeError, match="`domain` must be an integer, got float32"):
        domain_batch_norm(x, states, domain=np.ones(4, np.float32))
    with pytest.raises(
        ValueError, match=r"`domain` must be a scalar or have shape \(4"
    ):
        domain_batch_norm(x, states, domain=np.ones(3, int))
    with pytest.raises(ValueError, match=r"`states` must have shape \(domains, 2\)"):
        domain_batch_norm(x, jaxbn.init_state(2), domain=0)
    with pytest.raises(ValueError, match=r"`scale` must have shape \(2,\) or \(2, 2\)"):
        jax.eval_shape(lambda: domain_batch_norm(x, states, np.ones(3), domain=0))


@pytest.mark.parametrize("domain", [5, -1, np.array([0, 2, 1]), [0, 2, 1]])
def test_a_domain_that_is_not_there_is_named(domain):
    x, states = np.ones((3, 2), np.float32), init_domain_state(2, 2)
    with pytest.raises(ValueError, match="`domain` must be at least 0 and below 2"):
        domain_batch_norm(x, states, domain=domain)
    with pytest.raises(ValueError, match="`domain` must be at least 0 and below 2"):
        domain_batch_norm_inference(x, states, domain=domain)
