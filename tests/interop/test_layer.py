"""Values that no layer can have are refused, by one check for all readers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import interop

GOOD = {"running_mean": np.zeros(3), "running_var": np.ones(3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"running_var": np.ones(2)},
            r"'running_var'.* the 3 values .*_mean.*, got 2\.",
        ),
        ({"weight": np.ones(4)}, r"'weight'.* must have the 3 values .*, got 4\."),
        ({"bias": np.ones(1)}, r"'bias'.* must have the 3 values .*, got 1\."),
        ({"num_batches_tracked": np.ones(2)}, r"'num_batches_tracked'.* 3 .*, got 2"),
        ({"running_mean": np.zeros((3, 2))}, r"one axis .*, got shape \(3, 2\)"),
        ({"running_mean": 0.0}, r"'running_mean'.* one axis .*, got shape \(\)"),
        ({"running_var": -np.ones(3)}, r"'running_var'.* not be negative, got -1\.0"),
        ({"num_batches_tracked": -2}, r"'num_batches_tracked'.* negative, got -2"),
        ({"num_batches_tracked": 1.5}, r"'num_batches_tracked'.* whole, got 1\.5"),
        ({"running_mean": np.full(3, np.nan)}, "finite, got nan in 3 of 3 places"),
        ({"running_var": np.full(3, np.inf)}, "'running_var'.* finite, got inf"),
        ({"bias": np.full(3, -np.inf)}, "'bias'.* finite, got -inf"),
        ({"running_var": np.ones(3, complex)}, "'running_var'.* real, got complex64"),
        ({"running_mean": np.zeros(3, bool)}, "'running_mean'.* numbers, got .*bool"),
        ({"running_mean": ["a", "b", "c"]}, "'running_mean'.* numbers, got"),
        ({"running_mean": [[1.0], [1.0, 2.0]]}, "'running_mean'.* array with values"),
        ({"weight": jax.random.key(0)}, "'weight'.* array of numbers"),
        ({"weight": jax.ShapeDtypeStruct((3,), "f4")}, "'weight'.* array of numbers"),
        ({"running_var": None}, r"'running_var'.* must be an array, got None\."),
        ({"weight": np.ones(3, np.longdouble)}, "'weight'.* numbers, got"),
    ],
)
def test_values_that_no_layer_has_are_refused(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_torch({**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 5}, r"`momentum` must be in \[0, 1\], got 5\.0"),
        ({"momentum": -0.1}, r"`momentum` must be in \[0, 1\], got -0\.1"),
        ({"momentum": np.nan}, r"`momentum` must be in \[0, 1\], got nan"),
        ({"momentum": "0.1"}, "`momentum` must be a number, got '0.1'"),
        ({"momentum": True}, "`momentum` must be a number, got True"),
        ({"epsilon": -1e-5}, "`epsilon` must be positive and finite, got -1e-05"),
        ({"epsilon": None}, "`epsilon` must be a number, got None"),
        ({"epsilon": jnp.ones(2)}, "`epsilon` must be a number, got"),
        ({"prefix": None}, "`prefix` must be a string, got None"),
    ],
)
def test_settings_that_no_layer_has_are_refused(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.from_torch(GOOD, **changes)


LAYER = interop.Layer(jaxbn.init_state(3), jnp.ones(3), jnp.zeros(3))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (None, "`layer` must be a jaxbn.interop.Layer, got None"),
        (interop.Layer, "`layer` must be a .*, got the class Layer"),
        (tuple(LAYER), "`layer` must be a jaxbn.interop.Layer, got"),
        (
            LAYER._replace(state=None),
            "`layer.state` must be a BatchNormState, got None",
        ),
        (LAYER._replace(scale=jnp.ones(2)), "`layer.scale` must have the 3 values"),
        (LAYER._replace(bias="bias"), "`layer.bias` must be an array of numbers"),
        (LAYER._replace(momentum=2), r"`momentum` must be in \[0, 1\), got 2\.0"),
        (LAYER._replace(epsilon=0), r"`epsilon` must be positive and finite, got 0\.0"),
        (LAYER._replace(axis=(1, 2)), "`axis` must be an integer, got"),
        (LAYER._replace(axis=1.0), "`axis` must be an integer, got 1.0"),
        (LAYER._replace(unbiased="no"), "`unbiased` must be True or False, got 'no'"),
        (LAYER._replace(debias=None), "`debias` must be True or False, got None"),
    ],
)
def test_writers_refuse_what_is_no_layer(layer, message):
    with pytest.raises((TypeError, ValueError), match=message):
        interop.to_linen(layer)


def test_values_of_any_kind_of_number_are_read():
    layer = interop.from_torch(
        {
            "running_mean": [0, 1, 2],
            "running_var": np.ones((1, 3, 1, 1), np.float16),
            "num_batches_tracked": np.array([2**40]),
            "weight": jnp.ones(3, jnp.float8_e4m3fn),
        }
    )
    assert {a.dtype for a in jax.tree.leaves(layer[:2])} == {np.dtype("float32")}
    np.testing.assert_array_equal(layer.state.count, 2.0**40)


def test_traced_values_are_read_without_a_look():
    def read(mean):
        return interop.from_torch({**GOOD, "running_mean": mean}).state

    assert jax.eval_shape(read, jnp.zeros(3)).mean.shape == (3,)


def test_a_donated_array_is_refused():
    mean = jnp.zeros(3)
    mean.delete()
    with pytest.raises(
        TypeError, match=r"'running_mean'.* must be an array with values"
    ):
        interop.from_torch({**GOOD, "running_mean": mean})
