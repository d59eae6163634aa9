"""The nets of the claims: multilayer perceptrons, small convolutional nets.

Cells may set "gain", which multiplies the initial weights, and "dropout".
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from experiments.claims.lab.norms import Norm
from experiments.claims.lab.plan import Context, Net
from experiments.nets.small import patches

Activation = Callable[[Array], Array]
Placement = Literal["before", "after"]

ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def mlp(
    norm: Norm,
    *,
    inputs: int = 40,
    widths: Sequence[int] = (64, 64, 64),
    classes: int = 10,
    activation: str = "relu",
    placement: Placement = "before",
    first: Norm | None = None,
    std: float | None = None,
    bias: bool = False,
) -> Net:
    """Dense layers, each with `norm` before or after its activation.

    Args:
        norm: of every hidden layer.
        inputs, widths, classes: sizes.
        activation: a key of `ACTIVATIONS`.
        placement: of `norm`.
        first: normalizes the inputs of the net.
        std: of all initial weights. Default: sqrt(2 / inputs of the layer) (He).
        bias: whether every hidden layer adds a bias before its `norm`.

    Returns:
        A net whose taps are the input of every activation, listed from the first
        layer to the last.
    """
    sizes = [inputs, *widths]
    nonlinear = ACTIVATIONS[activation]

    def init(key, hyper):
        keys = jax.random.split(key, len(sizes))
        dense = [
            weights(k, n, m, gain=hyper.get("gain", 1.0), std=std)
            for k, n, m in zip(keys, sizes, [*widths, classes], strict=True)
        ]
        params, state = {"dense": dense, "bias": jnp.zeros(classes)}, {}
        made = [norm.init(n, hyper) for n in widths]
        params["norm"], state["norm"] = [m[0] for m in made], [m[1] for m in made]
        if bias:
            params["before"] = [jnp.zeros(n) for n in widths]
        if first:
            params["first"], state["first"] = first.init(inputs, hyper)
        return params, state

    def apply(params, state, x, context):
        new, taps = dict(state, norm=[]), []
        if first:
            x, new["first"] = first.apply(params["first"], state["first"], x, context)
        for n in range(len(widths)):
            x = x @ params["dense"][n] + (params["before"][n] if bias else 0)
            own = params["norm"][n], state["norm"][n]
            here = context._replace(key=jax.random.fold_in(context.key, n))
            if placement == "before":
                x, changed = norm.apply(*own, x, here)
                taps.append(x)
                x = nonlinear(x)
            else:
                taps.append(x)
                x, changed = norm.apply(*own, nonlinear(x), here)
            new["norm"].append(changed)
            x = dropout(x, here)
        return x @ params["dense"][-1] + params["bias"], new, taps

    return Net(init, apply)


def conv(
    norm: Norm,
    *,
    shape: Sequence[int] = (40,),
    channels: Sequence[int] = (24, 24, 24),
    classes: int = 10,
) -> Net:
    """Convolutions of width 3 and stride 2 with `norm` and ReLU, then a dense layer.

    Args:
        norm: of every convolution, over the batch and all positions for "bn".
        shape: of the signal or image that a row of the data set holds.
        channels: of the convolutions.
        classes: number of outputs.
    """
    window = 3 ** len(shape)
    space = tuple(shape)
    for _ in channels:
        space = tuple(-(-n // 2) for n in space)
    flat = channels[-1]
    for n in space:
        flat *= n

    def init(key, hyper):
        keys = jax.random.split(key, len(channels) + 1)
        sizes = [1, *channels]
        params: dict = {"kernel": [], "norm": []}
        state = []
        for k, n, m in zip(keys, sizes, channels, strict=False):
            params["kernel"].append(weights(k, window * n, m))
            own = norm.init(m, hyper)
            params["norm"].append(own[0])
            state.append(own[1])
        params["dense"] = weights(keys[-1], flat, classes)
        params["bias"] = jnp.zeros(classes)
        return params, state

    def apply(params, state, x, context):
        x, new = x.reshape(-1, *shape, 1), []
        for n, kernel in enumerate(params["kernel"]):
            x = patches(x, 2) @ kernel
            x, changed = norm.apply(params["norm"][n], state[n], x, context)
            new.append(changed)
            x = jax.nn.relu(x)
        x = x.reshape(len(x), -1)
        return x @ params["dense"] + params["bias"], new, []

    return Net(init, apply)


def residual(
    norm: Norm, blocks: int, *, inputs: int = 40, width: int = 32, branch: float = 1.0
) -> Net:
    """Blocks x + a W2 relu(N(W1 relu(N(x)))) with He weights, all in one loop.

    Args:
        norm: N.
        blocks: how many.
        inputs, width: sizes.
        branch: where the learned factor a starts.

    Returns:
        A net whose taps are the variance of each branch over that of its skip.
    """

    def block_init(key):
        keys = jax.random.split(key)
        pair = [norm.init(width, {}) for _ in range(2)]
        params = {
            "dense": [weights(k, width, width) for k in keys],
            "norm": [p for p, _ in pair],
            "alpha": jnp.float32(branch),
        }
        return params, [s for _, s in pair]

    def init(key, hyper):
        keys = jax.random.split(key, 3)
        params, state = jax.vmap(block_init)(jax.random.split(keys[0], blocks))
        ends = {
            "first": weights(keys[1], inputs, width),
            "last": 0.1 * weights(keys[2], width, 10),
        }
        return {"blocks": params, "bias": jnp.zeros(10), **ends}, state

    def apply(params, state, x, context):
        def block(x, both):
            own, state = both
            h, new = x, []
            for n in range(2):
                h, changed = norm.apply(own["norm"][n], state[n], h, context)
                new.append(changed)
                h = jax.nn.relu(h) @ own["dense"][n]
            ratio = jnp.var(h, 0).mean() / jnp.var(x, 0).mean()
            return x + own["alpha"] * h, (new, ratio)

        x = x @ params["first"]
        x, (state, ratios) = lax.scan(block, x, (params["blocks"], state))
        return jax.nn.relu(x) @ params["last"] + params["bias"], state, ratios

    return Net(init, apply)


def of_linen(module: nn.Module, shape: Sequence[int]) -> Net:
    """A module that is called as `module(x, train=)`; its state: running statistics.

    Args:
        module: the module.
        shape: of an example.
    """

    def init(key, hyper):
        made = module.init(key, jnp.zeros((1, *shape)), train=False)
        return made["params"], made.get("batch_stats", {})

    def apply(params, state, x, context):
        given = {"params": params, "batch_stats": state}
        call = {"train": context.train, "mutable": ["batch_stats"]}
        logits, new = module.apply(given, x, **call)
        return logits, new.get("batch_stats", {}), []

    return Net(init, apply)


def freeze_hidden(net: Net) -> Net:
    """Freezes the weights of the hidden layers of an `mlp`, but not their norms."""

    def apply(params, state, x, context):
        hidden = jax.lax.stop_gradient(params["dense"][:-1])
        frozen = {**params, "dense": [*hidden, params["dense"][-1]]}
        return net.apply(frozen, state, x, context)

    return Net(net.init, apply)


def weights(
    key: Array,
    inputs: int,
    outputs: int,
    *,
    gain: float | Array = 1.0,
    std: float | None = None,
) -> Array:
    """Gaussian weights, (inputs, outputs), with `std` or He's sqrt(2 / inputs)."""
    size = (2 / inputs) ** 0.5 if std is None else std
    return gain * size * jax.random.normal(key, (inputs, outputs))


def dropout(x: Array, context: Context) -> Array:
    """Drops units with the cell's "dropout" in training; scales the others up."""
    rate = context.hyper.get("dropout")
    if rate is None or not context.train:
        return x
    kept = jax.random.uniform(context.key, x.shape) >= rate
    return jnp.where(kept, x / (1 - rate), 0)
