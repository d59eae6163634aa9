"""Values that are wrong for nearly every argument, by what they are."""

import jax
import jax.numpy as jnp
import numpy as np


class Foreign:
    """An object that answers every question, wrongly."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 3


def deleted():
    """An array whose values were given away."""
    array = jnp.ones(3)
    array.delete()
    return array


WRONG = {
    "none": None,
    "true": True,
    "int": 7,
    "negative": -3,
    "float": 2.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "complex": 1j,
    "string": "wrong",
    "bytes": b"wrong",
    "list": [],
    "tuple": (),
    "dict": {},
    "ragged": [[1.0], [1.0, 2.0]],
    "matrix": np.ones((2, 3)),
    "wrong size": np.ones(5, np.float32),
    "bool array": np.ones(3, bool),
    "text array": np.array(["a", "b"]),
    "objects": np.array([None, {}], object),
    "abstract": jax.ShapeDtypeStruct((3,), np.float32),
    "deleted": deleted(),
    "foreign": Foreign(),
    "object": object(),
}
