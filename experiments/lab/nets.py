"""The nets of the claims: multilayer perceptrons, small convolutional nets.

Cells may set "gain", which multiplies the initial weights, and "dropout".
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from experiments.lab.engine import Context, Net
from experiments.lab.norms import Norm
from experiments.models import patches

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
    inputs: int = 64,
    widths: Sequence[int] = (64, 64, 64),
    classes: int = 10,
    activation: str = "relu",
    placement: Placement = "before",
    first: Norm | None = None,
    std: float | None = None,
) -> Net:
    """Dense layers, each with `norm` before or after its activation.

    Args:
        norm: of every hidden layer.
        inputs, widths, classes: sizes.
        activation: a key of `ACTIVATIONS`.
        placement: of `norm`.
        first: normalizes the inputs of the net.
        std: of all initial weights. Default: sqrt(2 / inputs of the layer) (He).

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
        if first:
            params["first"], state["first"] = first.init(inputs, hyper)
        return params, state

    def apply(params, state, x, context):
        new, taps = dict(state, norm=[]), []
        if first:
            x, new["first"] = first.apply(params["first"], state["first"], x, context)
        for n in range(len(widths)):
            x = x @ params["dense"][n]
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
    shape: Sequence[int] = (8, 8),
    channels: Sequence[int] = (8, 16),
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
