"""No wrong argument of any public function is accepted, or ends in a raw error.

Each argument of each call below is replaced by each of about thirty wrong ones. The
outcome is either one that `sensible` allows, or an error in the style of the house.
"""

import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wrong_values
from extras import needs
from flax import linen as nn
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import interop

pytestmark = pytest.mark.slow
os.environ.setdefault("KERAS_BACKEND", "jax")

# `argument` must <requirement>, got <value>. <What to do.>
STYLE = re.compile(r"^.*`.+`.* must .+, got .+\. .+[.`]$", re.DOTALL)
ERRORS = (ValueError, TypeError, NotImplementedError, FileNotFoundError, ImportError)

LAYER = interop.Layer(jaxbn.init_state(3), jnp.ones(3), jnp.zeros(3))
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


WRONG = {
    **wrong_values.WRONG,
    "path": pathlib.Path("wrong"),
    "nested": {"a": {"b": {"c": 1}}},
    "leaf": {"batch_stats": 3, "params": None},
    "list of strings": ["a", "b"],
    "array": np.ones(3),
    "no values": np.zeros((0, 3)),
    "nan array": np.full((4, 3), np.nan, np.float32),
    "int array": np.ones((4, 3), int),
    "list of arrays": [np.ones((4, 5), np.float32)],
    "list of nan": [np.full((4, 3), np.nan, np.float32)],
    "key": jax.random.key(0),
    "class": nnx.BatchNorm,
    "function": lambda *_, **__: 3,
    "linen": nn.BatchNorm(),
    "dense": nn.Dense(3),
    "renorm": jaxbn.nnx.BatchRenorm(3, rngs=nnx.Rngs(0)),
    "layer of two": interop.Layer(jaxbn.init_state(2)),
    "no state": interop.Layer(None),
    "nan layer": LAYER._replace(scale=jnp.full(3, jnp.nan)),
    "text layer": LAYER._replace(axis="last"),
}


def linen_layer():
    module = nn.BatchNorm()
    variables = module.init(jax.random.key(0), X, use_running_average=True)
    return {"module": module, "variables": variables}


def nnx_layer():
    return nnx.BatchNorm(3, rngs=nnx.Rngs(0))


def torch_layer():
    return needs("torch").nn.BatchNorm1d(3)


def keras_layer():
    source = needs("keras").layers.BatchNormalization()
    source.build((None, 3))
    return source


def equinox_layer(name):
    eqx = needs("equinox")
    made = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    return dict(zip((name, "state"), made(3, "batch", mode="batch"), strict=True))


def haiku_trees():
    needs("haiku")
    trees = interop.to_haiku(LAYER._replace(debias=True), rank=2)
    return dict(zip(("params", "state"), trees, strict=True))


def peer():
    return interop.Peer(lambda x: x, lambda x: x, lambda: (np.zeros(3), np.ones(3)))


STATE_DICT = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
IN_TORCH = LAYER._replace(axis=1, unbiased=True)
IN_HAIKU = LAYER._replace(debias=True)
IN_EQUINOX = LAYER._replace(axis=1, debias=True)
BATCHES = {"batches": [X]}
HAIKU = {"decay_rate": 0.9, "epsilon": 1e-5, "axis": -1}

# What is right, made anew for each call.
CALLS = {
    "compare": lambda: {"layer": LAYER, "peer": peer(), **BATCHES},
    "from_linen": lambda: {**linen_layer(), "path": ""},
    "check_linen": lambda: {**linen_layer(), **BATCHES},
    "to_linen": lambda: {
        "layer": LAYER,
        "variables": linen_layer()["variables"],
        "path": "",
    },
    "from_nnx": lambda: {"source": nnx_layer()},
    "check_nnx": lambda: {"source": nnx_layer(), **BATCHES},
    "to_nnx": lambda: {"layer": LAYER, "target": nnx_layer()},
    "from_torch": lambda: {
        "source": STATE_DICT,
        "prefix": "",
        "momentum": 0.1,
        "epsilon": 1e-5,
    },
    "to_torch": lambda: {"layer": IN_TORCH, "prefix": ""},
    "torch_layers": lambda: {"values": STATE_DICT},
    "check_torch": lambda: {"module": torch_layer(), **BATCHES},
    "check_torch_model": lambda: {
        "module": torch_layer(),
        "function": lambda x: x / np.sqrt(1 + 1e-5),
        **BATCHES,
    },
    "from_keras": lambda: {"source": keras_layer()},
    "to_keras": lambda: {"layer": LAYER},
    "check_keras": lambda: {"source": keras_layer(), **BATCHES},
    "from_haiku": lambda: {**haiku_trees(), "name": "batch_norm", **HAIKU},
    "to_haiku": lambda: {"layer": IN_HAIKU, "rank": 2, "name": "batch_norm"},
    "check_haiku": lambda: {**haiku_trees(), **BATCHES, **HAIKU},
    "from_equinox": lambda: {**equinox_layer("source"), "corrected": False},
    "to_equinox": lambda: {"layer": IN_EQUINOX, **equinox_layer("target")},
    "check_equinox": lambda: {**equinox_layer("source"), **BATCHES},
    "read_safetensors": lambda: {"path": "right"},
    "write_safetensors": lambda: {"path": "right", "arrays": STATE_DICT},
}

NUMBERS = {"int", "float"}
MAPPINGS = {"dict", "nested", "leaf"}
# By argument, or function and argument: what looks wrong and has a meaning.
SENSIBLE = {
    "epsilon": NUMBERS,
    "module": {"linen"},
    "check_torch.module": set(),
    "check_torch_model.module": set(),
    "check_torch_model.function": {"renorm"},
    "check_torch_model.batches": {"list of nan"},  # the difference is NaN then
    "params": MAPPINGS,  # a module may have none
    "prefix": {"string"},
    "from_torch.prefix": set(),
    "momentum": {"none"},
    "corrected": {"true"},
    "rank": {"int"},
    "to_haiku.name": {"string"},
    "to_linen.variables": {"none"},
    "to_keras.layer": {"layer of two"},
    "torch_layers.values": MAPPINGS,
    "write_safetensors.path": {"string", "path"},
    "write_safetensors.arrays": {"dict"},
}


def outcome(function, arguments):
    """None for success, else the error."""
    try:
        function(**arguments)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", CALLS)
def test_every_wrong_argument_has_a_message(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interop.write_safetensors("right", STATE_DICT)
    function, make = getattr(interop, name), CALLS[name]
    assert outcome(function, make()) is None
    unexpected = {}
    for argument in make():
        allowed = SENSIBLE.get(f"{name}.{argument}", SENSIBLE.get(argument, set()))
        for kind, value in WRONG.items():
            error = outcome(function, {**make(), argument: value})
            fine = isinstance(error, FileNotFoundError) or (
                isinstance(error, ERRORS) and STYLE.search(str(error))
            )
            if kind in allowed:
                fine = error is None
            if not fine:
                unexpected[argument, kind] = error
    assert unexpected == {}


@pytest.mark.parametrize("name", CALLS)
def test_traced_values_are_converted_or_refused_with_a_message(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    interop.write_safetensors("right", STATE_DICT)
    function, make = getattr(interop, name), CALLS[name]
    unexpected = {}
    for argument, value in make().items():
        leaves, tree = jax.tree.flatten(value)
        arrays = [v for v in leaves if isinstance(v, np.ndarray | jax.Array)]
        if not arrays:
            continue

        def call(*arrays, argument=argument, leaves=leaves, tree=tree):
            given = iter(arrays)
            mixed = [
                next(given) if isinstance(v, np.ndarray | jax.Array) else v
                for v in leaves
            ]
            function(**{**make(), argument: jax.tree.unflatten(tree, mixed)})

        try:
            jax.eval_shape(call, *arrays)
        except Exception as error:
            if not (isinstance(error, ERRORS) and STYLE.search(str(error))):
                unexpected[argument] = error
    assert unexpected == {}


def test_all_functions_are_there():
    types = {"Difference", "Layer", "Peer", "TorchModel"}
    assert {n for n in vars(interop) if not n.startswith("_")} >= CALLS.keys() | types
    public = {n for n, v in vars(interop).items() if callable(v)}
    assert public == CALLS.keys() | types
