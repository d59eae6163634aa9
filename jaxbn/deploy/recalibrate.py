"""Exact population statistics for fixed parameters (precise batch normalization)."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn.core import options, trees
from jaxbn.core.moments import centered, group_of, public, shared_moments
from jaxbn.core.pool import pool
from jaxbn.core.state import average_of, updated
from jaxbn.core.types import AxisName, Moments
from jaxbn.core.values import is_single, shown

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
        TypeError: if there is no state or no Moments in a place of the trees.
        ValueError: if `passes` is below 1, `batches` is empty or was used up, or what
            `collect` returns does not fit `states`.

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
    hint = "It returns the moments of each layer for `(states, batch)`."
    options.function("collect", collect, hint=hint)
    hint = (
        "Use the number of layers in sequence, or 1 if `collect` normalizes as in "
        "training."
    )
    passes = options.whole("passes", passes, hint=hint)
    members = group_of(axis_name, None)
    how = average_of(0.0, True, unbiased, False)
    if options.flag("scan", scan):
        total, batches = _total_of_scan, _listed(batches)
    else:
        total, batches = _total_of_iterable, _iterable(batches)
    states = trees.of_states(states)

    def fitting(states, batch):
        return trees.with_moments(states, collect(states, batch), "collect(...)")

    for _ in range(passes):
        moments = total(fitting, states, batches)
        if members is not None:
            moments = trees.over(lambda m: _shared(m, members), moments)
        states = trees.over(
            lambda state, m: updated(state, m, how),
            states,
            moments,
        )
    return states


def _iterable(batches: Any) -> Iterable:
    if is_single(batches):
        raise TypeError(
            f"`batches` must be an iterable of batches, got {shown(batches)}. Pass a "
            "list, or arrays with `scan=True`."
        )
    return batches


def _listed(batches: Any) -> Any:
    """Arrays whose leading axis lists the batches, of which there is one at least."""
    batches = trees.of_arrays("batches", batches)
    shapes = [leaf.shape for leaf in jax.tree.leaves(batches)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "`batches` must be arrays whose leading axis lists the batches, got shapes "
            f"{shapes}. Stack batches of one size, or leave out `scan`."
        )
    return batches


def _total_of_iterable(collect, states, batches: Iterable) -> Any:
    compiled = jax.jit(collect)
    pending: list = []
    for batch in batches:
        pending.append(compiled(states, trees.of_arrays("batches", batch)))
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
    return trees.over(pool, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))


def _total_of_scan(collect, states, batches) -> Any:
    return trees.over(pool, lax.map(lambda batch: collect(states, batch), batches))


def _shared(moments: Moments, members) -> Moments:
    return public(shared_moments(centered(moments), members))
