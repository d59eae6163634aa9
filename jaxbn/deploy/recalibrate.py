"""Exact population statistics for fixed parameters (precise batch normalization)."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn.core.moments import centered, group_of, public, shared_moments
from jaxbn.core.pool import pool
from jaxbn.core.state import update
from jaxbn.core.types import AxisName, BatchNormState, Moments

_PENDING = 64


def recalibrate(
    collect: Callable[[Any, Any], Any],
    states: Any,
    batches: Any,
    *,
    passes: int = 1,
    scan: bool = False,
    axis_name: AxisName | None = None,
    unbiased: bool = False,
) -> Any:
    """Replaces running statistics by those of all of `batches`, each value once.

    The moments of the batches are merged with their counts, so batches may differ in
    size, be masked or be empty, and neither their order nor their number matters:

        mean = sum_i n_i mean_i / n,   var = sum_i (m2_i + n_i (mean_i - mean)^2) / n.

    What a deep layer sees depends on how the layers before it normalize. If `collect`
    normalizes each batch with its own statistics, as in training, this is the method of
    Wu and Johnson. If it normalizes with the running statistics, as at evaluation, then
    pass k makes the k-th layer exact, and after as many passes as there are layers in
    sequence every layer has the statistics of one pass over all data.

    Args:
        collect: `collect(states, batch)` returns the local moments of each layer's
            input: Moments wherever `states` has a BatchNormState. See
            `jaxbn.deploy.linen_model` and `nnx_model` for whole models.
        states: a BatchNormState, or any tree of them.
        batches: an iterable, which is read `passes` times; with `scan` a tree of
            arrays, whose leading axis lists the batches.
        passes: how often to go over `batches`, >= 1.
        scan: if True the loop is part of the compiled program, so that the whole call
            may be under `jax.jit` or `jax.shard_map`.
        axis_name: mesh or vmap axes whose members each see a part of the data.
        unbiased: if True the variance is divided by n - 1.

    Returns:
        The tree with new means and variances. Channels without a value stay as they
        are; no gradient flows.

    Raises:
        ValueError: if `passes` is below 1, or `batches` is empty or was used up.

    Reference:
        Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021.
        https://arxiv.org/abs/2105.07576

    Example:
        >>> x = jnp.arange(8.0).reshape(4, 2, 1)
        >>> def collect(state, batch):
        ...     return jaxbn.moments(batch)
        >>> jaxbn.deploy.recalibrate(collect, jaxbn.init_state(1), x).mean
        Array([3.5], dtype=float32)
    """
    if passes < 1:
        raise ValueError(
            f"`passes` must be at least 1, got {passes!r}. Use the number of layers in "
            "sequence, or 1 if `collect` normalizes as in training."
        )
    members = group_of(axis_name, None)
    total = _total_of_scan if scan else _total_of_iterable
    for _ in range(passes):
        moments = total(collect, states, batches)
        if members is not None:
            moments = _map(lambda m: _shared(m, members), moments)
        states = _map(
            lambda m, state: update(state, m, momentum=0.0, unbiased=unbiased),
            moments,
            states,
        )
    return states


def _total_of_iterable(collect, states, batches: Iterable) -> Any:
    compiled = jax.jit(collect)
    pending: list = []
    for batch in batches:
        pending.append(compiled(states, batch))
        if len(pending) == _PENDING:
            pending = [_pooled(pending)]
    if not pending:
        raise ValueError(
            "`batches` must contain a batch in every pass, got none. Pass a list, or "
            "an object that starts again each time it is iterated over."
        )
    return _pooled(pending)


@jax.jit
def _pooled(parts: list) -> Any:
    return _map(pool, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))


def _total_of_scan(collect, states, batches) -> Any:
    return _map(pool, lax.map(lambda batch: collect(states, batch), batches))


def _shared(moments: Moments, members) -> Moments:
    return public(shared_moments(centered(moments), members))


def _map(function, moments, states=None):
    """Applies `function` at every Moments of a tree, with the state at its place."""
    leaves, tree = jax.tree.flatten(moments, is_leaf=lambda m: isinstance(m, Moments))
    if states is None:
        return tree.unflatten(map(function, leaves))
    others, own = jax.tree.flatten(
        states, is_leaf=lambda s: isinstance(s, BatchNormState)
    )
    if own != tree:
        raise ValueError(
            f"`collect` must return one Moments for each state, as {own}, got {tree}. "
            "Return the moments in a tree of the structure of `states`."
        )
    return own.unflatten(map(function, leaves, others))
