"""Masks for weight decay, and initial scales of residual blocks."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbn.core import options, trees, values
from jaxbn.core.paths import pattern
from jaxbn.core.records import FINITE, Rule


def weight_decay_mask(params: Any, *, names: Sequence[str] = ("scale", "bias")) -> Any:
    """True for each parameter to decay, False for scales and biases.

    For `optax.add_decayed_weights(rate, mask=jaxbn.optim.weight_decay_mask)` and
    `optax.adamw`. A leaf is left out by the last name of its path, so the bias of a
    dense layer is left out too, and a vector of another name, as an embedding, is not.

    Args:
        params: any tree with named leaves: dictionaries, dataclasses, nnx states.
        names: the last names to leave out. The weight of a normalization layer of
            Equinox counts as its "scale".

    Returns:
        A tree of the same structure, of bools; one for each `nnx.Variable` or
        `nn.Partitioned`, so that it fits parameters with and without these.

    Raises:
        TypeError: if a name is no string.

    Example:
        >>> params = {"dense": {"kernel": 0.0}, "norm": {"scale": 1.0, "bias": 0.0}}
        >>> jaxbn.optim.weight_decay_mask(params)["norm"]
        {'bias': False, 'scale': False}
    """
    names = options.words("names", names)
    return jax.tree.map(lambda name: name not in names, last_names(params, is_box))


def decay_scale(
    rate: float, *, target: float = 1.0, names: Sequence[str] = ("scale",)
) -> optax.GradientTransformation:
    """Decays scales towards one instead of zero, and nothing else.

        update = gradient + rate * (scale - target)

    which is the gradient of an L2 penalty on scale - 1. Chain it before the optimizer
    for a penalty, after it (and before the learning rate) for decoupled decay.

    Args:
        rate: strength of the decay.
        target: what to decay towards; with `names=("bias",)` and 0 it decays biases.
        names: the last names of the leaves it applies to. The weight of a
            normalization layer of Equinox counts as its "scale".

    Returns:
        A stateless gradient transformation that needs `params`.

    Raises:
        TypeError: if an argument is no number, or a name no string.
        ValueError: if `rate` is negative, or a number not finite.

    Reference:
        Summers and Dinneen, Four things everyone should know to improve batch
        normalization, 2020. https://arxiv.org/abs/1906.03548

    Example:
        >>> decay = jaxbn.optim.decay_scale(0.1)
        >>> params, zero = {"scale": jnp.full(1, 3.0)}, {"scale": jnp.zeros(1)}
        >>> decay.update(zero, decay.init(params), params)[0]
        {'scale': Array([0.2], dtype=float32)}
    """

    hint = "A usual rate is 1e-4, and a scale starts at one."
    right = Rule(lambda v: np.isfinite(v) & (v >= 0), "finite and not negative")
    rate = options.number("rate", rate, *right, hint=hint)
    target = options.number("target", target, *FINITE, hint=hint)
    names = options.words("names", names)

    def step(updates, params):
        hint = "Pass the parameters to `update`, as its third argument."
        trees.same_structure("params", params, "updates", updates, hint=hint)

        def one(name, value, param):
            if name not in names:
                return value
            value, param = values.array("updates", value), values.array("params", param)
            return value + rate * (param - target)

        return jax.tree.map(one, last_names(updates), updates, params)

    return optax.stateless(step)


def zero_last_scale(params: Any, *, block: str, norm: str = ".*") -> Any:
    """Sets the last scale of every residual block to zero: it starts as the identity.

    Args:
        params: the parameters of a model: nested dictionaries, or an nnx.State.
        block: regular expression for the whole name of a residual block, for example
            "ResNetBlock_[0-9]+".
        norm: regular expression for the whole names of the normalization layers on the
            residual branch, to leave out one on the shortcut. Of those with a scale the
            last one in natural order is meant: "BatchNorm_10" is after "BatchNorm_9".

    Returns:
        New parameters, in the same containers.

    Raises:
        TypeError: if `block` or `norm` is no string.
        ValueError: if one is no regular expression, or no block has a scale.

    Reference:
        Goyal et al., Accurate, large minibatch SGD: training ImageNet in 1 hour, 2017.
        https://arxiv.org/abs/1706.02677

    Example:
        >>> params = {"Block_0": {"BatchNorm_0": {"scale": jnp.ones(1)}}}
        >>> jaxbn.optim.zero_last_scale(params, block="Block_[0-9]+")
        {'Block_0': {'BatchNorm_0': {'scale': Array([0.], dtype=float32)}}}
    """
    hint = 'For example "ResNetBlock_[0-9]+".'
    is_block = pattern("block", block, hint=hint)
    is_norm = pattern("norm", norm, hint=hint)
    found = defaultdict(list)
    for path, _ in jax.tree.leaves_with_path(params, is_leaf=is_box):
        layer, name = place(path)
        inside, _, own = layer.rpartition("/")
        if name == "scale" and is_norm(own) and is_block(inside.rpartition("/")[2]):
            found[inside].append(layer)
    if not found:
        raise ValueError(
            f"`block` must match the name of a block that contains a scale, got "
            f"{block!r} and `norm` {norm!r}. Look at the keys of `params`."
        )
    last = {max(layers, key=_natural) for layers in found.values()}

    def one(path, leaf):
        layer, name = place(path)
        is_last = layer in last and name == "scale"
        # It may be in a box, as `nn.Partitioned`, which stays around it.
        return jax.tree.map(jnp.zeros_like, leaf) if is_last else leaf

    return jax.tree.map_with_path(one, params, is_leaf=is_box)


def last_names(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The last name of every leaf, in a tree of the same structure."""

    def is_end(node):
        return _is_equinox_norm(node) or (is_leaf is not None and is_leaf(node))

    def as_in_flax(path, _):
        name = last_name(path)
        return "scale" if name == "weight" else name

    def names(path, node):
        if _is_equinox_norm(node):
            return jax.tree.map_with_path(as_in_flax, node)
        return last_name(path)

    return jax.tree.map_with_path(names, tree, is_leaf=is_end)


def place(path: tuple) -> tuple[str, str]:
    """The path of the layer of a leaf, and the name of the leaf there."""
    *layer, name = [str(getattr(k, "key", getattr(k, "name", k))) for k in path] or [""]
    return "/".join(layer), name


def last_name(path: tuple) -> str:
    """The last named key; positions and the value of an nnx variable have no name."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    names = [n for n in names if isinstance(n, str) and n not in ("value", "raw_value")]
    return names[-1] if names else ""


def is_box(value: Any) -> bool:
    """Recognizes what Flax puts around an array: a variable, or metadata."""
    return hasattr(value, "get_value") or hasattr(value, "replace_boxed")


def _is_equinox_norm(node: Any) -> bool:
    """Recognizes LayerNorm, BatchNorm, ... of Equinox, and this package's layer."""
    return all(hasattr(node, name) for name in ("eps", "weight", "bias"))


def _natural(name: Any) -> list:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", str(name))]
