"""Recurrent nets that classify a sequence by their last output."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.claims.lab.nets import weights
from experiments.claims.lab.norms import MOMENTUM
from experiments.claims.lab.plan import Net
from experiments.nets.lstm import SCALE, init_lstm, lstm

STEPS, INPUTS, HIDDEN = 10, 4, 24


def normalized_lstm(*, scale: float = SCALE) -> Net:
    """An LSTM whose gates and cell are normalized; gamma starts at `scale`.

    Every step has its own statistics.
    """

    def init(key, hyper):
        cell, states = init_lstm(key, inputs=INPUTS, hidden=HIDDEN, max_steps=STEPS)
        scales = ("hidden_scale", "inputs_scale", "cell_scale")
        full = {n: jnp.full_like(getattr(cell, n), scale) for n in scales}
        return {"cell": cell._replace(**full), **_head(key)}, states

    def apply(params, state, x, context):
        sequence = x.reshape(-1, STEPS, INPUTS)
        options: dict[str, Any] = {"momentum": MOMENTUM} if context.train else {}
        outputs, state = lstm(
            params["cell"], state, sequence, training=context.train, **options
        )
        return outputs[:, -1] @ params["dense"] + params["bias"], state, []

    return Net(init, apply)


def plain_lstm(*, layer_norm: bool = False) -> Net:
    """The same cell without normalization, or with that of Ba et al., 2016.

    Layer normalization is of what comes from the last output and of the cell, but not
    of what comes from the input.
    """

    def init(key, hyper):
        cell, _ = init_lstm(key, inputs=INPUTS, hidden=HIDDEN, max_steps=1)
        names = ("hidden_scale", "cell_scale")
        cell = cell._replace(**{n: jnp.ones_like(getattr(cell, n)) for n in names})
        return {"cell": cell, **_head(key)}, ()

    def norm(x, scale):
        return scale * jax.nn.standardize(x, epsilon=1e-5) if layer_norm else x

    def apply(params, state, x, context):
        p = params["cell"]
        sequence = jnp.moveaxis(x.reshape(-1, STEPS, INPUTS), 1, 0)

        def step(carry, now):
            h, c = carry
            gates = norm(h @ p.hidden, p.hidden_scale) + now @ p.inputs + p.bias
            f, i, o, g = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            shown = norm(c, p.cell_scale) + p.cell_bias
            return (jax.nn.sigmoid(o) * jnp.tanh(shown), c), None

        zero = jnp.zeros((len(x), HIDDEN))
        (h, _), _ = jax.lax.scan(step, (zero, zero), sequence)
        return h @ params["dense"] + params["bias"], state, []

    return Net(init, apply)


def _head(key: Array) -> dict:
    dense = weights(jax.random.fold_in(key, 1), HIDDEN, 10)
    return {"dense": dense, "bias": jnp.zeros(10)}
