"""Optimizer helpers: what to decay, when to step, and when statistics are complete."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxbn.backends.contract import statistics_type
from jaxbn.core import sync
from jaxbn.core.moments import group_of, merge
from jaxbn.core.state import update
from jaxbn.core.types import AxisName, BatchNormState, Moments


def weight_decay_mask(params: Any, *, names: Sequence[str] = ("scale", "bias")) -> Any:
    """True for each parameter to decay, False for scales and biases.

    For `optax.add_decayed_weights(rate, mask=jaxbn.optim.weight_decay_mask)` and
    `optax.adamw`. A leaf is left out by the last name of its path, so the bias of a
    dense layer is left out too, and a vector of another name, as an embedding, is not.

    Args:
        params: any tree with named leaves: dictionaries, dataclasses, nnx states.
        names: the last names to leave out.

    Returns:
        A tree of the same structure, of bools.

    Example:
        >>> params = {"dense": {"kernel": 0.0}, "norm": {"scale": 1.0, "bias": 0.0}}
        >>> jaxbn.optim.weight_decay_mask(params)["norm"]
        {'bias': False, 'scale': False}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _last_name(path) not in names, params
    )


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
        names: the last names of the leaves it applies to.

    Returns:
        A stateless gradient transformation that needs `params`.

    Reference:
        Summers and Dinneen, Four things everyone should know to improve batch
        normalization, 2020. https://arxiv.org/abs/1906.03548

    Example:
        >>> decay = jaxbn.optim.decay_scale(0.1)
        >>> params, zero = {"scale": jnp.full(1, 3.0)}, {"scale": jnp.zeros(1)}
        >>> decay.update(zero, decay.init(params), params)[0]
        {'scale': Array([0.2], dtype=float32)}
    """

    def step(updates, params):
        def one(path, value, param):
            hit = _last_name(path) in names
            return value + rate * (param - target) if hit else value

        return jax.tree_util.tree_map_with_path(one, updates, params)

    return optax.stateless(step)


def zero_last_scale(params: Any, *, block: str, norm: str = ".*") -> Any:
    """Sets the last scale of every residual block to zero: it starts as the identity.

    Args:
        params: nested dictionaries of parameters.
        block: regular expression for the whole name of a residual block, for example
            "ResNetBlock_[0-9]+".
        norm: regular expression for the whole names of the normalization layers on the
            residual branch, to leave out one on the shortcut. Of those with a scale the
            last one in natural order is meant: "BatchNorm_10" is after "BatchNorm_9".

    Returns:
        New parameters.

    Raises:
        ValueError: if no block has a scale.

    Reference:
        Goyal et al., Accurate, large minibatch SGD: training ImageNet in 1 hour, 2017.
        https://arxiv.org/abs/1706.02677

    Example:
        >>> params = {"Block_0": {"BatchNorm_0": {"scale": jnp.ones(1)}}}
        >>> jaxbn.optim.zero_last_scale(params, block="Block_[0-9]+")
        {'Block_0': {'BatchNorm_0': {'scale': Array([0.], dtype=float32)}}}
    """
    changed = 0

    def visit(name, tree):
        nonlocal changed
        if not hasattr(tree, "items"):
            return tree
        tree = {key: visit(key, value) for key, value in tree.items()}
        norms = [k for k in tree if re.fullmatch(norm, k) and _has_scale(tree[k])]
        if norms and re.fullmatch(block, name):
            last = max(norms, key=_natural)
            # A scale may be in a box, as `nn.Partitioned`, which stays around it.
            zero = jax.tree.map(jnp.zeros_like, tree[last]["scale"])
            tree[last] = {**tree[last], "scale": zero}
            changed += 1
        return tree

    result = visit("", params)
    if not changed:
        raise ValueError(
            f"`block` must match the name of a block that contains a scale, got "
            f"{block!r} and `norm` {norm!r}. Look at the keys of `params`."
        )
    return result


def keep_finite(
    new: Any, old: Any, *, watch: Any = None, axis_name: AxisName | None = None
) -> tuple[Any, Array]:
    """`new` if it is finite, else `old`: parameters, optimizer and statistics together.

    Args:
        new: what a training step computed: any tree, for example (params, optimizer
            state, batch statistics).
        old: the same tree before the step.
        watch: a tree to look at instead of `new`, for example (loss, gradients).
        axis_name: mesh or vmap axes that decide together.

    Returns:
        The chosen tree, and whether it is the new one, a boolean scalar.

    Example:
        >>> new, old = {"w": jnp.full(1, jnp.nan)}, {"w": jnp.ones(1)}
        >>> jaxbn.optim.keep_finite(new, old)
        ({'w': Array([1.], dtype=float32)}, Array(False, dtype=bool))
    """
    leaves = jax.tree.leaves(new if watch is None else watch)
    # Not a sum, which overflows from 2^31 bad values on.
    bad = (jnp.any(~jnp.isfinite(v)) for v in leaves if _can_overflow(v))
    here = functools.reduce(jnp.logical_or, bad, jnp.zeros((), bool))
    members = group_of(axis_name, None)
    (anywhere,) = sync.totals((here.astype(jnp.int32),), members)
    finite = anywhere == 0
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), finite


def init_accumulation(states: Any) -> Any:
    """The moments of no values, to start `accumulate` with.

    Args:
        states: a BatchNormState, or any tree of them.

    Returns:
        The tree with Moments in place of the states, in float32, or float64 for
        float64 states.

    Example:
        >>> jaxbn.optim.init_accumulation(jaxbn.init_state(2)).count
        Array([0., 0.], dtype=float32)
    """

    def nothing(state: BatchNormState) -> Moments:
        var, mean = (
            jnp.zeros_like(v, statistics_type(v)) for v in (state.var, state.mean)
        )
        return Moments(var, mean, var)

    return jax.tree.map(nothing, states, is_leaf=_is_state)


def accumulate(
    accumulated: Any,
    states: Any,
    moments: Any,
    *,
    ready: bool | Array,
    momentum: float | Array | None = 0.99,
    **options: Any,
) -> tuple[Any, Any]:
    """Merges the moments of one micro-batch; updates the states when all are there.

    The states after k micro-batches are those after one batch of all their examples,
    whatever their sizes and masks. With `optax.MultiSteps`, `ready` is
    `steps.has_updated(optimizer_state)` after its update. Each micro-batch is still
    normalized by itself: the averaged gradient is that of one ghost batch
    normalization over all examples whose groups are the micro-batches.

    Args:
        accumulated: from `init_accumulation` or the last call.
        states: running statistics, a BatchNormState or any tree of them.
        moments: of this micro-batch, Moments wherever `states` has a BatchNormState.
        ready: whether this is the last micro-batch; may be traced.
        momentum: weight of the old running value.
        options: `debias`, `unbiased` and `skip_nonfinite` of `jaxbn.update`.

    Returns:
        The accumulated moments, of no values if `ready`, and the states, each in the
        types they came in, so that both may be carried through `lax.scan`.

    Example:
        >>> state = jaxbn.init_state(1)
        >>> seen = jaxbn.optim.init_accumulation(state)
        >>> for i, x in enumerate(jnp.arange(4.0).reshape(2, 2, 1)):
        ...     m = jaxbn.moments(x)
        ...     seen, state = jaxbn.optim.accumulate(seen, state, m, ready=i == 1)
        >>> state.mean, state.var
        (Array([1.5], dtype=float32), Array([1.25], dtype=float32))
    """
    add = functools.partial(jax.tree.map, is_leaf=lambda m: isinstance(m, Moments))
    # What is accumulated may be narrower or wider than the moments.
    with jax.numpy_dtype_promotion("standard"):
        total = add(merge, accumulated, moments)

    def one(state: BatchNormState, moments: Moments) -> BatchNormState:
        new = update(state, moments, momentum=momentum, **options)
        return jax.tree.map(lambda a, b: jnp.where(ready, a, b), new, state)

    states = jax.tree.map(one, states, total, is_leaf=_is_state)
    left = jax.tree.map(
        lambda old, v: jnp.where(ready, 0, v).astype(jnp.asarray(old).dtype),
        accumulated,
        total,
    )
    return left, states


def _is_state(value: Any) -> bool:
    return isinstance(value, BatchNormState)


def _last_name(path: tuple) -> str:
    """The last named key; positions and the value of an nnx variable have no name."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    names = [n for n in names if isinstance(n, str) and n not in ("value", "raw_value")]
    return names[-1] if names else ""


def _has_scale(tree: Any) -> bool:
    return hasattr(tree, "items") and "scale" in tree


def _natural(name: str) -> list:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


def _can_overflow(value: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(value).dtype, jnp.inexact)
