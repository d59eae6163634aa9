"""`jet`, `checkify`, the compiled program and the caches see no more than lax does."""

import functools
import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.experimental.jet import jet
from jax.sharding import PartitionSpec as P

import jaxbn
from jaxbn.variants import blend, domains, ghost, renorm, timestep

ROWS, CHANNELS = 8, 3
MASK = np.arange(ROWS)[:, None] % 3 > 0


def draw(count, dtype=np.float32):
    return np.random.default_rng(0).normal(2, 1, (count, ROWS, CHANNELS)).astype(dtype)


def squares(x, where=1.0):
    count = jnp.broadcast_to(where, x.shape).sum(0, keepdims=True)
    mean = (where * x).sum(0, keepdims=True) / count
    return mean, (where * (x - mean) ** 2).sum(0, keepdims=True), count


def plain(x, where=1.0, residual=0.0):
    mean, m2, count = squares(x, where)
    return (x - mean) / jnp.sqrt(m2 / count + 1e-5) + residual


def ours(x, **options):
    return jaxbn.batch_norm(x, jaxbn.init_state(CHANNELS), **options)[0]


def of_moments(x, where=None):
    return jaxbn.moments(x, where=where).m2


RESIDUAL = np.cos(draw(1, np.float64)[0])
SERIES = {
    "batch_norm": (ours, plain),
    "mask": (
        functools.partial(ours, where=MASK),
        functools.partial(plain, where=1.0 * MASK),
    ),
    "weights": (
        functools.partial(ours, weights=0.5 * MASK),
        functools.partial(plain, where=1.0 * MASK),
    ),
    "silu": (
        functools.partial(ours, activation="silu"),
        lambda x: jax.nn.silu(plain(x)),
    ),
    "output": (functools.partial(ours, save="output"), plain),
    "recompute, residual": (
        functools.partial(ours, save="recompute", residual=RESIDUAL),
        functools.partial(plain, residual=RESIDUAL),
    ),
    "moments": (of_moments, lambda x: squares(x)[1][0]),
    "moments, mask": (
        functools.partial(of_moments, where=MASK),
        lambda x: squares(x, 1.0 * MASK)[1][0],
    ),
    "inference": (
        lambda x: jaxbn.batch_norm_inference(x, jaxbn.init_state(CHANNELS)),
        lambda x: x / jnp.sqrt(1 + 1e-5),
    ),
}  # fmt: skip


def test_taylor_series():
    @jax.jit
    def all_of_them(x, *terms):
        pairs = SERIES.items()
        return {name: [jet(f, (x,), (terms,)) for f in pair] for name, pair in pairs}

    with jax.enable_x64(True):
        found = all_of_them(*draw(4, np.float64))
    for name, (got, want) in found.items():
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)


CHECKED = {
    "inference": lambda x: jaxbn.batch_norm_inference(
        x, jaxbn.init_state(CHANNELS), jnp.zeros(CHANNELS)
    ),
    "batch_norm": lambda x: ours(x, activation="relu"),
    "compiled": jax.jit(of_moments),
    "gradient": lambda x: jax.grad(lambda x: ours(x).sum())(x),
}


def test_checkify_reports_nan():
    found = {}
    for name, f in CHECKED.items():
        checked = jax.jit(checkify.checkify(f, errors=checkify.float_checks))
        (x,) = draw(1)
        found[name] = [checked(v)[0].get() for v in (x, np.where(x == x[0], np.inf, x))]
    for name, (right, wrong) in found.items():
        assert right is None and "nan generated" in wrong, name


def everything(x, axis_name):
    """All functions that compute statistics or use them."""
    state, by = jaxbn.init_state(CHANNELS), {"axis_name": axis_name}
    both = ({}, {"where": MASK[: len(x)]})
    found = [
        jaxbn.batch_norm(x, state, activation="leaky_relu", save=save, **mask, **by)
        for save in ("input", "output", "recompute")
        for mask in both
    ]
    found += [jaxbn.moments(x, **mask, **by) for mask in both]
    found += [
        jaxbn.batch_norm(x, state, activation="gelu", residual=x, **by),
        jaxbn.batch_norm_inference(x, state),
        jaxbn.merge(jaxbn.moments(x), jaxbn.moments(2 * x)),
        ghost.ghost_batch_norm(x, state, ghost_batch_size=4, axis_name=axis_name),
        renorm.batch_renorm(
            x, renorm.init_renorm_state(CHANNELS), r_max=3.0, d_max=5.0, **by
        ),
        timestep.timestep_batch_norm(
            x, timestep.init_timestep_state(2, CHANNELS), t=1, **by
        ),
        domains.domain_batch_norm(
            x, domains.init_domain_state(2, CHANNELS), domain=1, **by
        ),
        blend.eval_blend(x, state, alpha=0.5),
    ]
    return found


def loss(x, axis_name=None):
    found = everything(x, axis_name)
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(found))


def on_devices(x):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.shard_map(
        lambda x: loss(x, "d")[None], mesh=mesh, in_specs=P("d"), out_specs=P("d")
    )
    return each(x).sum()


@functools.cache
def traced(where):
    """A loss and its gradient, with statistics shared in one of the ways."""
    by_name = functools.partial(loss, axis_name="d")
    function = {
        "one device": loss,
        "vmap": lambda x: jax.vmap(by_name, axis_name="d")(jnp.stack([x, x])).sum(),
        "shard_map": on_devices,
    }[where]
    return jax.jit(jax.value_and_grad(function)).trace(draw(1)[0])


# The quick suite has every platform and, here, statistics that devices share.
@pytest.mark.parametrize(
    ("where", "platform"),
    [
        pytest.param(where, platform, marks=[] if quick else [pytest.mark.slow])
        for where in ("one device", "vmap", "shard_map")
        for platform in ("cpu", "cuda", "tpu")
        for quick in [
            where == "one device" or (where, platform) == ("shard_map", "cpu")
        ]
    ],
)
def test_no_branch_and_no_loop_depends_on_data(where, platform):
    text = traced(where).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.reduce" in text
    assert not re.search(r"stablehlo\.(case|if|while)\b", text)


def kept_alive(call):
    """How many of the functions and arrays of a user stay when the user drops them."""
    alive = []
    for i in range(3):
        array = jnp.full(7, float(i))

        def function(y, array=array):
            return y * array[0]

        alive += [weakref.ref(array), weakref.ref(function)]
        call(function)
        del array, function
    gc.collect()
    return sum(ref() is not None for ref in alive)


def test_no_cache_keeps_functions_or_arrays_of_the_user():
    (x,) = draw(1)

    def gradient(function):
        jax.grad(lambda x: ours(x, activation=function).sum())(x)

    def compiled(function):
        jax.jit(functools.partial(ours, activation=function))(x)

    calls = [lambda f: ours(x, activation=f), gradient, compiled]
    assert [kept_alive(call) for call in calls] == [0] * len(calls)
