"""Haiku modules and their counterparts agree, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import needs

import jaxbn
from jaxbn import interop

hk = needs("haiku")


def batches(axis=-1, steps=5):
    rng = np.random.default_rng(1)
    shape = (2, 4, 5, 3) if axis == -1 else (2, 3, 4, 5)
    return [jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for _ in range(steps)]


def trained(axis=-1, *, affine=True, steps=2):
    layout = "channels_last" if axis == -1 else "channels_first"
    net = hk.transform_with_state(
        lambda x: hk.BatchNorm(affine, affine, 0.9, data_format=layout)(x, True)
    )
    params, state = net.init(jax.random.key(0), batches(axis)[0])
    for x in batches(axis, steps):
        _, state = net.apply(params, state, None, x)
    return params, state


@pytest.mark.parametrize(
    ("axis", "affine"),
    [
        (-1, True),
        (1, False),
        pytest.param(-1, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
    ],
)
def test_both_sides_agree_over_five_steps(axis, affine):
    params, state = trained(axis, affine=affine)
    got = interop.check_haiku(params, state, batches(axis), decay_rate=0.9, axis=axis)
    assert max(got) < 3e-6


@pytest.mark.parametrize("axis", [-1, 1])
def test_trees_make_the_round_trip(axis):
    params, state = trained(axis)
    layer = interop.from_haiku(params, state, decay_rate=0.9, axis=axis)
    got = interop.to_haiku(layer, rank=4)
    assert jax.tree.structure(got) == jax.tree.structure((params, state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, (params, state)
    )


def test_messages_name_the_modules_there_are():
    with pytest.raises(ValueError, match="`state` must contain 'norm/~/mean_ema'"):
        interop.from_haiku(
            {}, {"batch_norm/~/mean_ema": {}}, decay_rate=0.9, name="norm"
        )
    layer = interop.Layer(jaxbn.init_state(2), momentum=None)
    with pytest.raises(
        ValueError, match=r"`layer.momentum` must be a number, got None"
    ):
        interop.to_haiku(layer, rank=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": 1}, r"`axis` must be .* in the shape \(1, 1, 1, 3\) of .*, got 1\."),
        ({"axis": 3}, r"`axis` must be 1 or -1, .*, got 3\."),
        ({"axis": None}, "`axis` must be an integer, got None"),
        ({"decay_rate": 1.5}, r"`decay_rate` must be in \[0, 1\], got 1\.5"),
        ({"decay_rate": None}, "`decay_rate` must be a number, got None"),
        ({"name": 3}, "`name` must be a string, got 3"),
        ({"params": None}, "`params` must be a mapping, got None"),
        ({"params": {"batch_norm": 3}}, r"`params\['batch_norm'\]` must be a mapping"),
        (
            {"state": {"batch_norm/~/mean_ema": {}}},
            r"'average' and 'counter' .*got \[\]",
        ),
    ],
)
def test_other_arguments_are_refused(changes, message):
    params, state = TREES
    arguments = {"params": params, "state": state, "decay_rate": 0.9, **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_haiku(**arguments)


LAYER = interop.Layer(jaxbn.init_state(3), jnp.ones(3), debias=True)
TREES = interop.to_haiku(LAYER, rank=4)
