"""Every wrong argument has its message: what it must be, what it is, what to do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn

X, STATE = jnp.ones((8, 3)), jaxbn.init_state(3)
COMPLEX = np.ones((8, 3), np.complex64)
MOMENTS = jaxbn.Moments(*np.ones((3, 3), np.float32))


def train(x=X, state=STATE, *arrays, **options):
    return jaxbn.batch_norm(x, state, *arrays, **options)


def infer(x=X, state=STATE, *arrays, **options):
    return jaxbn.batch_norm_inference(x, state, *arrays, **options)


def shared(**options):
    """A call inside `vmap` over an axis "i" of four positions."""
    layer = functools.partial(train, state=STATE, **options)
    return jax.vmap(layer, axis_name="i")(jnp.ones((4, 8, 3)))


def traced_epsilon():
    return jax.jit(lambda e: train(epsilon=e))(1e-5)


CASES = {
    "integer x": (
        lambda: train(jnp.ones((8, 3), jnp.int32)),
        TypeError,
        "`x` must be complex or floating point of 16 bits or more, got int32. "
        "Convert it with `x.astype(jnp.float32)`.",
    ),
    "axis out of range": (
        lambda: train(axis=5),
        ValueError,
        "`axis` must be in [-2, 2) for `x` with shape (8, 3), got 5. "
        "It names the feature axis or axes.",
    ),
    "no axis": (
        lambda: train(axis=()),
        ValueError,
        "`axis` must be in [-2, 2) for `x` with shape (8, 3), got ().",
    ),
    "axis is no integer": (
        lambda: train(axis=(0.5,)),
        ValueError,
        "`axis` must be in [-2, 2) for `x` with shape (8, 3), got (0.5,).",
    ),
    "axis of a scalar": (
        lambda: train(jnp.float32(1)),
        ValueError,
        "`axis` must be in [0, 0) for `x` with shape (), got -1.",
    ),
    "axis twice": (
        lambda: train(axis=(1, -1)),
        ValueError,
        "`axis` must name each axis once, got (1, -1) for `x` with shape (8, 3). "
        "Remove the repeated one.",
    ),
    "scale of another size": (
        lambda: train(X, STATE, jnp.ones(4)),
        ValueError,
        "`scale` must have shape (3,) to match axis 1 of `x` with shape (8, 3), "
        "got (4,). Reshape it, or set `axis` to the feature axis.",
    ),
    "bias of another size": (
        lambda: train(X, STATE, None, jnp.ones((2, 3))),
        ValueError,
        "`bias` must have shape (3,), with axes of the batch in front or not, or "
        "broadcast to the shape (8, 3) of `x` with all its features, got (2, 3).",
    ),
    "scale of several axes": (
        lambda: train(X, jaxbn.init_state((8, 3)), jnp.ones(3), axis=(0, 1)),
        ValueError,
        "`scale` must have shape (8, 3) to match axis (0, 1) of `x` with shape (8, 3),",
    ),
    "state of another size": (
        lambda: train(X, jaxbn.init_state(4)),
        ValueError,
        "`state.mean` must have shape (3,) to match axis 1 of `x` with shape (8, 3), "
        "got (4,).",
    ),
    "inference with a state of another size": (
        lambda: infer(X, jaxbn.init_state(4)),
        ValueError,
        "`state.mean` must have shape (3,) to match axis 1",
    ),
    "complex scale": (
        lambda: train(X, STATE, jnp.ones(3, jnp.complex64)),
        TypeError,
        "`scale` must be real for real `x`, got complex64 with `x` of type float32. "
        "Take its real part, or make `x` complex.",
    ),
    "state is a tuple": (
        lambda: train(X, (jnp.zeros(3), jnp.ones(3))),
        TypeError,
        "`state` must be a BatchNormState, got tuple. "
        "Create one with `jaxbn.init_state(num_features)`.",
    ),
    "real state of complex x": (
        lambda: train(COMPLEX),
        TypeError,
        "`state.mean` must be complex for complex `x`, got float32. "
        "Create it with `jaxbn.init_state(num_features, dtype=x.dtype)`.",
    ),
    "mask of numbers": (
        lambda: train(where=jnp.ones((8, 1))),
        TypeError,
        "`where` must be boolean, got float32. Write `where != 0`.",
    ),
    "mask of the rows": (
        lambda: train(where=jnp.ones(8, bool)),
        ValueError,
        "`where` must broadcast to the shape (8, 3) of `x`, got (8,). "
        "Write `where.reshape((8, 1))`.",
    ),
    "mask that does not fit": (
        lambda: train(where=jnp.ones((5, 1), bool)),
        ValueError,
        "`where` must broadcast to the shape (8, 3) of `x`, got (5, 1). "
        "Add axes of size 1 until it broadcasts.",
    ),
    "mask of a higher rank": (
        lambda: train(where=jnp.ones((1, 8, 3), bool)),
        ValueError,
        "`where` must broadcast to the shape (8, 3) of `x`, got (1, 8, 3).",
    ),
    "residual of another shape": (
        lambda: train(residual=jnp.ones((1, 3))),
        ValueError,
        "`residual` must have the shape (8, 3) of `x`, got (1, 3). "
        "Project or broadcast it first.",
    ),
    "unknown activation": (
        lambda: train(activation="swish"),
        ValueError,
        "`activation` must be one of 'relu', 'relu6', 'silu', 'gelu', 'leaky_relu', "
        "a function or None, got 'swish'. Pass the function itself, for example "
        "`jax.nn.elu`.",
    ),
    "epsilon of zero": (
        lambda: train(epsilon=0.0),
        ValueError,
        "`epsilon` must be positive and finite, got 0.0. The usual value is 1e-5.",
    ),
    "infinite epsilon": (
        lambda: train(epsilon=float("inf")),
        ValueError,
        "`epsilon` must be positive and finite, got inf.",
    ),
    "traced epsilon": (
        traced_epsilon,
        TypeError,
        "`epsilon` must be a Python number, got ",
    ),
    "momentum of one": (
        lambda: train(momentum=1.0),
        ValueError,
        "`momentum` must be in [0, 1), got 1.0. It is the weight of the old value: "
        "PyTorch's `momentum` is 1 minus it, and None gives the cumulative average.",
    ),
    "negative momentum": (
        lambda: jaxbn.update(STATE, MOMENTS, momentum=-0.1),
        ValueError,
        "`momentum` must be in [0, 1), got -0.1.",
    ),
    "momentum above one without debias": (
        lambda: train(momentum=1.5, debias=False),
        ValueError,
        "`momentum` must be in [0, 1), got 1.5.",
    ),
    "groups without an axis": (
        lambda: train(axis_groups=[[0, 1]]),
        ValueError,
        "`axis_groups` must come with `axis_name`, got [[0, 1]] without one. "
        "Name the axis whose positions are grouped.",
    ),
    "groups that leave one out": (
        lambda: shared(axis_name="i", axis_groups=[[0, 1], [3]]),
        ValueError,
        "`axis_groups` must contain each position of 0 to 3 of axis 'i' once, "
        "got [[0, 1], [3]]. List every device in one group.",
    ),
    "groups that overlap": (
        lambda: shared(axis_name="i", axis_groups=[[0, 1], [1, 2, 3]]),
        ValueError,
        "`axis_groups` must contain each position of 0 to 3 of axis 'i' once",
    ),
    "unbound axis": (
        lambda: train(axis_name="batch"),
        ValueError,
        "`axis_name` must be bound here, got 'batch'. Call inside "
        "`jax.vmap(..., axis_name=...)`, `jax.pmap` or `jax.shard_map`, or leave it "
        "out: under plain `jax.jit` statistics already cover the global batch.",
    ),
    "one unbound axis of two": (
        lambda: shared(axis_name=("i", "j")),
        ValueError,
        "`axis_name` must be bound here, got ('i', 'j').",
    ),
    "one value per channel": (
        lambda: train(X[:1], unbiased=True),
        ValueError,
        "`unbiased` must be False for one value per channel, got True. "
        "The unbiased variance divides by their number minus one.",
    ),
    "update with other moments": (
        lambda: jaxbn.update(STATE, jaxbn.Moments(*jnp.ones((3, 4)))),
        ValueError,
        "`moments` must have the shape (3,) of `state`, got (4,). "
        "Compute them over the same feature axes.",
    ),
    "update of a tuple": (
        lambda: jaxbn.update(tuple(STATE), MOMENTS),
        TypeError,
        "`state` must be a BatchNormState, got tuple.",
    ),
    "update with complex moments": (
        lambda: jaxbn.update(STATE, MOMENTS._replace(mean=COMPLEX[0])),
        TypeError,
        "`state.mean` must be complex for complex moments, got float32.",
    ),
    "negative size": (
        lambda: jaxbn.init_state(-1),
        ValueError,
        "`num_features` must not be negative, got -1. It is the size of the feature "
        "axis.",
    ),
    "a float as size": (
        lambda: jaxbn.init_state(4.0),
        TypeError,
        "`num_features` must be an integer or a tuple of integers, got 4.0.",
    ),
    "a batch as sizes": (
        lambda: jaxbn.init_state(X),
        TypeError,
        "`num_features` must be an integer or a tuple of integers, got ",
    ),
    "a float among sizes": (
        lambda: jaxbn.init_state((2, 4.0)),
        TypeError,
        "`num_features` must be an integer or a tuple of integers, got (2, 4.0).",
    ),
    "unknown implementation": (
        lambda: train(implementation="cuda"),
        ValueError,
        "`implementation` must be one of ",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument_has_its_message_which_names_it_and_the_value(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    text = str(caught.value)
    assert re.match(r"`[\w.]+` must .*, got .*\. \S", text, re.DOTALL), text
    assert text.endswith(".")


def test_the_unknown_implementation_of_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("JAXBN_IMPLEMENTATION", "cuda")
    with pytest.raises(ValueError, match="The variable JAXBN_IMPLEMENTATION must be"):
        train()


@pytest.mark.parametrize(
    "name", [n for n, why in jaxbn.implementations().items() if why is not None]
)
def test_an_implementation_that_cannot_run_says_why(name):
    why = jaxbn.implementations()[name]
    with pytest.raises(NotImplementedError, match=re.escape(why)):
        train(implementation=name)


def test_one_value_per_channel_on_each_of_several_members_is_enough():
    layer = functools.partial(
        jaxbn.batch_norm, state=STATE, unbiased=True, axis_name="i"
    )
    _, state = jax.jit(jax.vmap(layer, axis_name="i"))(np.ones((4, 1, 3), np.float32))
    np.testing.assert_array_equal(state.count, np.ones((4, 3)))


@pytest.mark.parametrize("momentum", [0, 0.5, np.float32(0.9), jnp.float32(0.9), None])
def test_momentum_may_be_any_number_in_range(momentum):
    jax.eval_shape(lambda x: train(x, momentum=momentum), X)


@pytest.mark.parametrize("axis", [np.int64(1), (np.int32(-1),), np.array([1])])
def test_axes_may_be_integers_of_numpy(axis):
    programs = [jax.make_jaxpr(lambda x, a=a: train(x, axis=a))(X) for a in (axis, -1)]
    assert str(programs[0]) == str(programs[1])


@pytest.mark.parametrize("size", [np.int64(6), np.prod((2, 3)), [6], np.array([6])])
def test_sizes_may_be_integers_of_numpy(size):
    found = jax.eval_shape(lambda: jaxbn.init_state(size))
    assert {leaf.shape for leaf in found} == {(6,)}


def test_nothing_at_all_leaves_the_state_alone_also_if_unbiased():
    y, state = jax.jit(functools.partial(train, unbiased=True))(X[:0])
    assert y.shape == (0, 3)
    np.testing.assert_array_equal(state.count, 0)


def test_eight_bits_have_no_mean_and_variance():
    with pytest.raises(TypeError, match="16 bits or more, got float8_e4m3fn"):
        train(X.astype(jnp.float8_e4m3fn))


@pytest.mark.parametrize("where", [jnp.ones((8, 1), bool), jnp.ones(3, bool), True])
def test_a_mask_may_be_anything_that_broadcasts(where):
    got = jax.jit(lambda x: jaxbn.moments(x, where=where))(X)
    np.testing.assert_array_equal(got.count, np.full(3, 8))
