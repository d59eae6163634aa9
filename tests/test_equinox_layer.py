"""The Equinox layer: whole batches under vmap, right from the first step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import needs

import jaxbn

eqx = needs("equinox")

X = np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32) * 2 + 7


def made(**options):
    return eqx.nn.make_with_state(jaxbn.equinox.BatchNorm)(3, "batch", **options)


def mapped(layer, **axes):
    def run(x, state, others):
        return layer(x, state, **others)

    run = jax.vmap(run, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    return eqx.filter_jit(run)


@pytest.mark.parametrize("counting", ["all", "where", "weights"])
def test_training_and_evaluation_equal_the_function_on_the_whole_batch(counting):
    layer, state = made(activation="relu")
    generator = np.random.default_rng(1)
    others = {
        "all": {},
        "where": {"where": generator.uniform(size=(16, 1, 5)) < 0.7},
        "weights": {"weights": generator.uniform(size=(16, 1, 5)).astype(np.float32)},
    }[counting]
    y, state = mapped(layer)(X, state, others)
    by = {"axis": 1, "activation": "relu"}
    want, kept = jaxbn.batch_norm(X, jaxbn.init_state(3), **by, **others)
    np.testing.assert_allclose(y, want, atol=1e-5)
    chex.assert_trees_all_close(state.get(layer.statistics), kept, rtol=1e-6)
    layer = eqx.nn.inference_mode(layer)
    z, same = mapped(layer)(X, state, {})
    np.testing.assert_allclose(z, jaxbn.batch_norm_inference(X, kept, **by), atol=1e-6)
    chex.assert_trees_all_equal(*(s.get(layer.statistics) for s in (same, state)))


def test_evaluation_is_right_after_one_step_where_equinox_is_not():
    spread = {}
    norms = {"ours": made(), "its": eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        3, "batch", mode="batch"
    )}  # fmt: skip
    for name, (layer, state) in norms.items():
        _, state = mapped(layer)(X, state, {})
        y, _ = mapped(eqx.nn.inference_mode(layer))(X, state, {})
        spread[name] = float(jnp.std(y))
    assert abs(spread["ours"] - 1) < 1e-3
    assert spread["its"] < 0.5


def test_it_trains_in_a_sequential_model_with_its_optimizer_tree():
    def make(key):
        first, second = jax.random.split(key)
        return eqx.nn.Sequential([
            eqx.nn.Linear(4, 8, key=first),
            jaxbn.equinox.BatchNorm(8, "batch", activation="relu"),
            eqx.nn.Linear(8, 1, key=second),
        ])  # fmt: skip

    model, state = eqx.nn.make_with_state(make)(jax.random.key(0))
    x = np.random.default_rng(2).normal(size=(32, 4)).astype(np.float32)

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            run = jax.vmap(
                model, axis_name="batch", in_axes=(0, None), out_axes=(0, None)
            )
            y, new = run(x, state)
            return jnp.mean(jnp.square(y[:, 0] - x[:, 0])), new

        (value, new), slopes = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, slopes)), (
            value,
            new,
        )

    values = []
    for _ in range(20):
        model, (value, state) = step(model, state)
        values.append(float(value))
    assert values[-1] < values[0] / 2
    assert float(state.get(model.layers[1].statistics).count[0]) == 20


WRONG = {
    "input_size": ("three", "`input_size` must be an integer or a tuple"),
    "axis_name": (3, "`axis_name` must be a name or a tuple of names"),
    "eps": (-1.0, "`epsilon` must be"),
    "channelwise_affine": ("no", "`channelwise_affine` must be"),
    "momentum": (2.0, "`momentum` must be in"),
    "inference": ("no", "`inference` must be"),
    "dtype": (np.int32, "`dtype` must be"),
    "activation": ("tanhh", "`activation` must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_has_its_message_at_once(name):
    value, message = WRONG[name]
    options = {"input_size": 3, "axis_name": "batch", name: value}
    with pytest.raises((TypeError, ValueError), match=message):
        eqx.nn.make_with_state(jaxbn.equinox.BatchNorm)(**options)


WRONG_CALLS = {
    "channels": (X[:, :2], {}, r"must have shape \(2,\) to match axis 0"),
    "integers": (X.astype(int), {}, "`x` must be"),
    "mask": (X, {"where": np.ones((16, 1, 5), np.float32)}, "`where` must be boolean"),
    "mask of another shape": (X, {"where": np.ones((16, 4), bool)}, "`where` must bro"),
    "weights": (X, {"weights": np.ones((16, 4), np.float32)}, "`weights` must broad"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_has_its_message(name):
    layer, state = made()
    x, others, message = WRONG_CALLS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        mapped(layer)(x, state, others)


def test_calls_outside_of_the_axis_and_in_no_mode_have_messages():
    layer, state = made()
    with pytest.raises(ValueError, match=r"`axis_name` must be .*'batch'"):
        layer(X[0], state)
    with pytest.raises(TypeError, match="`inference` must be"):
        layer(X[0], made()[1], inference="yes")
