"""Scale and bias with axes of the batch equal the plain layer followed by them."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from sweeps import but_slow

import jaxbn

# x, its feature axis; scale and bias as given, and with the rank of x.
CASES = {
    "images": ((8, 4, 4, 3), -1, (8, 3), (8, 1, 1, 3), (8, 1, 1, 3), (8, 1, 1, 3)),
    "channels first": ((8, 3, 4, 4), 1, (8, 3), (3,), (8, 3, 1, 1), (1, 3, 1, 1)),
    "everywhere": ((4, 2, 2, 3), -1, (4, 2, 2, 3), None, (4, 2, 2, 3), (1, 1, 1, 1)),
    "vectors": ((8, 3), 1, (8, 3), (1, 3), (8, 3), (1, 3)),
    "features first": ((3, 8), 0, (3, 8), (3, 1), (3, 8), (3, 1)),
    "steps": ((6, 5, 3), -1, (6, 5, 3), (6, 3), (6, 5, 3), (6, 1, 3)),
}


def arrays(name):
    shape, axis, of_scale, of_bias, *_ = CASES[name]
    generator = np.random.default_rng(0)
    scale = generator.normal(size=of_scale)
    bias = None if of_bias is None else generator.normal(size=of_bias)
    state = jaxbn.init_state(shape[axis])
    state = jax.tree.map(lambda v: np.asarray(v, np.float64), state)
    x, ct = generator.normal(size=(2, *shape))
    return x + 3, scale, bias, ct, state


def plain(name, activation):
    shape, axis, *_, full_scale, full_bias = CASES[name]
    rows = tuple(i for i in range(len(shape)) if i != axis % len(shape))

    def run(x, scale, bias):
        mean = x.mean(rows, keepdims=True)
        var = jnp.square(x - mean).mean(rows, keepdims=True)
        z = (x - mean) / jnp.sqrt(var + 1e-5) * scale.reshape(full_scale)
        return activation(z if bias is None else z + bias.reshape(full_bias))

    return run


SWEPT = ("vectors", "features first", "steps", "everywhere")


@pytest.mark.parametrize("name", but_slow(CASES, SWEPT))
def test_values_and_derivatives_to_second_order(name):
    with jax.enable_x64(True):
        x, scale, bias, ct, state = arrays(name)
        axis = CASES[name][1]

        def ours(activation, **options):
            def run(x, scale, bias):
                options.update(axis=axis, activation=activation)
                return jaxbn.batch_norm(x, state, scale, bias, **options)[0]

            return run

        def facts(function):
            def loss(x, scale):
                return jnp.sum(function(x, scale, bias) * ct)

            def second(x, scale):
                return sum(
                    jnp.sum(jnp.sin(g)) for g in jax.grad(loss, (0, 1))(x, scale)
                )

            return function(x, scale, bias), *(
                jax.grad(f, (0, 1))(x, scale) for f in (loss, second)
            )

        pairs = [
            (ours(f, save=save), plain(name, f))
            for f, save in ((jax.nn.relu, "input"), (jax.nn.silu, "recompute"))
        ]
        got, want = (
            jax.jit(lambda side=side: [facts(pair[side]) for pair in pairs])()
            for side in (0, 1)
        )
        chex.assert_trees_all_close(got, want, rtol=1e-8, atol=1e-9)
        evaluated = jaxbn.batch_norm_inference(x, state, scale, bias, axis=axis)
        shift = 0 if bias is None else bias.reshape(CASES[name][5])
        want = x / np.sqrt(1 + 1e-5) * scale.reshape(CASES[name][4]) + shift
        np.testing.assert_allclose(evaluated, want, rtol=1e-12)


def test_equal_rows_of_scale_are_a_vector():
    x, scale, _, ct, state = arrays("images")
    x, scale, ct = (np.asarray(v, np.float32) for v in (x, scale, ct))

    def run(scale, **options):
        def loss(x):
            y, new = jaxbn.batch_norm(x, state, scale, **options)
            return jnp.sum(y * ct), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    @jax.jit
    def both(vector):
        rows = jnp.broadcast_to(vector, scale.shape)
        by = {"activation": "leaky_relu"}
        return [
            (run(rows, save=save, **by), run(vector, save=save, **by))
            for save in ("input", "output")
        ]

    for got, want in both(np.abs(scale[0]) + 0.5):
        chex.assert_trees_all_close(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_devices_exchange_as_much_as_for_a_vector():
    x, scale, _, ct, state = arrays("images")
    x, scale, ct = (np.asarray(v, np.float32) for v in (x, scale, ct))

    def gradients(x, scale, ct, axis_name=None):
        def loss(x, scale):
            y, _ = jaxbn.batch_norm(x, state, scale, axis_name=axis_name)
            return jnp.sum(jnp.sin(y) * ct)

        return jax.grad(loss, (0, 1))(x, scale)

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    split = jax.NamedSharding(mesh, P("d"))
    mapped = jax.jit(
        jax.shard_map(
            lambda *a: gradients(*a, axis_name="d"),
            mesh=mesh, in_specs=P("d"), out_specs=P("d"),
        )
    )  # fmt: skip
    whole = jax.jit(gradients, in_shardings=(split,) * 3)
    want = gradients(x, scale, ct)
    for run in (mapped, whole):
        chex.assert_trees_all_close(run(x, scale, ct), want, rtol=1e-4, atol=1e-4)
        text = run.lower(x, scale, ct).compile().as_text()
        assert len(re.findall(r" all-reduce\(", text)) == 2


@pytest.mark.parametrize(
    "shape", [(4,), (7, 3), (8, 4), (8, 4, 4, 4, 3), (8, 1, 1, 1), (2, 4, 4, 3)]
)
def test_shapes_that_do_not_fit_are_refused(shape):
    x = np.ones((8, 4, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"`scale` must have shape \(3,\).*got"):
        jaxbn.batch_norm(x, jaxbn.init_state(3), np.ones(shape, np.float32))
