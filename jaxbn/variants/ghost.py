"""Ghost batch normalization: statistics of groups of a fixed size.

A group is one more feature axis: x of shape (B, ..., C) becomes (G, b, ..., C).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxbn.core import checks, layers, placement, sync, weighting
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.moments import centered, group_of, public, shared_moments
from jaxbn.core.pool import pool
from jaxbn.core.records import record
from jaxbn.core.state import Average, average_of, updated
from jaxbn.core.types import Activation, AxisName, BatchNormState, Moments


def ghost_batch_norm(
    x: Array,
    state: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    ghost_batch_size: int,
    axis: int = -1,
    axis_name: AxisName | None = None,
    where: Array | None = None,
    weights: Array | None = None,
    momentum: float | Array | None = 0.99,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
    debias: bool = True,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
    update: Literal["pooled", "sequential"] = "pooled",
) -> tuple[Array, BatchNormState]:
    """Normalizes each group of `ghost_batch_size` consecutive examples by itself.

        y_i = (x_i - mean_g) / sqrt(var_g + epsilon) * scale + bias,   i in group g

    The groups are those of the global batch, in order, on any number of devices: a
    device may hold several groups, or a group several devices.

    Args:
        x: a batch whose first axis lists the examples of this device.
        state: running statistics, equal on all members of `axis_name`.
        scale, bias: shape (C,), shared by the groups. Default: one and zero.
        ghost_batch_size: examples of a group; divides those of this device, or is a
            multiple of them.
        axis: the feature axis; not the first one.
        axis_name: mesh or vmap axes over which the batch is split, in order. Under
            plain `jax.jit` it is not needed.
        where, weights, epsilon, activation, residual, implementation: as in
            `jaxbn.batch_norm`.
        momentum, debias, unbiased, skip_nonfinite: as in `jaxbn.update`.
        update: "pooled" updates the running statistics once, with the moments of all
            groups merged: those of the whole batch. "sequential" updates them with one
            group after the other.

    Returns:
        y, with the shape and type of `x`, and the state for the next call.

    Raises:
        ValueError: if sizes do not divide, or as in `jaxbn.batch_norm`.

    Reference:
        Hoffer, Hubara and Soudry, Train longer, generalize better, 2017.
        https://arxiv.org/abs/1705.08741

    Example:
        >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
        >>> state = jaxbn.init_state(1)
        >>> y, state = ghost_batch_norm(x, state, ghost_batch_size=2)
        >>> y.ravel().round(3), state.mean
        (Array([-1.,  1., -1.,  1.], dtype=float32), Array([11.], dtype=float32))
    """
    x = checks.array(x)
    feature = checks.one_feature_axis(x, axis)
    how = average_of(momentum, debias, unbiased, skip_nonfinite)
    layers.order_of_updates("update", update)
    axis_name = checks.axis_names(axis_name)
    groups, spread = _groups(x, ghost_batch_size, axis_name)
    state, where = record("state", state), weighting.counted(where, weights, x)
    checks.statistics(state, x, (feature,))  # here, as all that names a shape
    scale = checks.vector("scale", scale, x, (feature,))
    bias = checks.vector("bias", bias, x, (feature,))
    residual = checks.residual(residual, x)

    def run(x, state, scale, bias, where, residual):
        if not groups:
            return x, state  # no examples, on any device
        split = (groups, x.shape[0] // groups, *x.shape[1:])
        y, batch = batch_norm(
            x.reshape(split),
            _per_group(state, groups),
            _per_group(scale, groups),
            _per_group(bias, groups),
            axis=(0, feature + 1),
            axis_name=axis_name if spread else None,
            axis_groups=spread,
            **weighting.arguments(None if where is None else _split_mask(where, split)),
            momentum=0.0,  # The state of each group is then its own statistics.
            epsilon=epsilon,
            activation=activation,
            residual=None if residual is None else residual.reshape(split),
            implementation=implementation,
        )
        parts = _moments(
            batch,
            where,
            split,
            feature,
            group_of(axis_name, spread) if spread else None,
        )
        if axis_name is not None:
            share = _pooled if update == "pooled" else _listed
            parts = share(parts, spread, axis_name)
        return y.reshape(x.shape), _updated(state, parts, update, how)

    run = placement.automatic(run, x, x, state)
    return run(x, state, scale, bias, where, residual)


def _groups(x: Array, size: int, axis_name):
    """Groups on this device, and the devices of each group if those are several."""
    local, size = x.shape[0], layers.group_size("ghost_batch_size", size)
    if local % size == 0:
        return local // size, None
    devices = 1 if axis_name is None else checks.axis_size(axis_name)
    shared = size // local if local else 0
    if not shared or size % local or devices % shared:
        raise ValueError(
            f"`ghost_batch_size` must divide the {local} examples on each device, or "
            f"be a multiple that divides those on all {devices}, got {size!r}. "
            "Choose another size or drop the rest of the batch."
        )
    positions = list(range(devices))
    return 1, [positions[i : i + shared] for i in range(0, devices, shared)]


def _per_group(values, groups: int):
    """Values of shape (C,) for each group."""

    def repeat(value):
        value = jnp.asarray(value)
        return jnp.broadcast_to(value, (groups, *value.shape))

    return jax.tree.map(repeat, values)


def _split_mask(where: Array, split: tuple[int, ...]) -> Array:
    leading = split[:2] if where.shape[0] > 1 else (1, 1)
    return where.reshape(*leading, *where.shape[1:])


def _moments(batch, where, split, feature, members) -> Moments:
    """The moments of the groups on this device, listed in order."""
    counted = jnp.ones((1,) * len(split), bool)
    counted = counted if where is None else _split_mask(where, split)
    rows = tuple(i for i in range(1, len(split)) if i != feature + 1)
    count = jnp.broadcast_to(counted.astype(batch.var.dtype), split).sum(rows)
    (count,) = sync.totals((count,), members)
    # A group without values has the running statistics, which merging ignores.
    return lax.stop_gradient(Moments(count, batch.mean, batch.var * count))


def _pooled(parts: Moments, spread, axis_name) -> Moments:
    """The moments of all groups on all devices together, as a list of one."""
    count, mean, m2 = pool(parts)
    # Each device of a group that is spread has the moments of all of it.
    devices = len(spread[0]) if spread else 1
    local = centered(Moments(count / devices, mean, m2 / devices))
    together = public(shared_moments(local, group_of(axis_name, None)))
    return jax.tree.map(lambda leaf: leaf[None], together)


def _listed(parts: Moments, spread, axis_name) -> Moments:
    """The moments of all groups on all devices, listed in order."""
    alone = [[i] for i in range(checks.axis_size(axis_name))]
    everyone = group_of(axis_name, alone)
    assert everyone is not None
    listed = sync.total_by_group(jnp.stack(parts), everyone)
    listed = listed[:: len(spread[0])] if spread else listed
    return Moments(*listed.swapaxes(0, 1).reshape(3, -1, *parts.mean.shape[1:]))


def _updated(state, parts: Moments, order: str, how: Average) -> BatchNormState:
    if order == "pooled":
        return updated(state, pool(parts), how)

    def step(state, part):
        return updated(state, part, how), None

    return lax.scan(step, state, parts)[0]
