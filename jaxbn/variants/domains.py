"""Statistics per domain: AdvProp, domain adaptation, several data sets in one model."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends import dispatch
from jaxbn.backends.contract import without_nonfinite
from jaxbn.core import checks, options, placement, values, weighting
from jaxbn.core.moments import group_of, local_moments, public, shared_moments
from jaxbn.core.normalize import apply
from jaxbn.core.records import STATE, record
from jaxbn.core.state import average_of, init_state, updated
from jaxbn.core.types import (
    Activation,
    AxisGroups,
    AxisName,
    BatchNormState,
    Moments,
)

_STATES = STATE._replace(create="Create them with `init_domain_state`.")
DOMAINS = "Use 2 for clean and adversarial examples."
"""Hint in messages about a number of domains."""


def init_domain_state(
    num_domains: int, num_features: int | Sequence[int]
) -> BatchNormState:
    """Running statistics for each domain: leaves of shape (num_domains, C).

    Args:
        num_domains: number of domains D, >= 1.
        num_features: number of channels C.

    Raises:
        ValueError: if `num_domains` is below 1.

    Example:
        >>> init_domain_state(2, 3).var.shape
        (2, 3)
    """
    number = options.whole("num_domains", num_domains, hint=DOMAINS)
    return init_state((number, *options.sizes("num_features", num_features)))


def domain_batch_norm(
    x: Array,
    states: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    domain: int | Array,
    axis: int = -1,
    axis_name: AxisName | None = None,
    axis_groups: AxisGroups | None = None,
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
) -> tuple[Array, BatchNormState]:
    """Normalizes each example with the statistics of its domain.

        y_i = (x_i - mean_k) / sqrt(var_k + epsilon) * scale_k + bias_k,  k = domain_i

    where mean_k and var_k run over the examples of domain k in the batch, on all
    members of `axis_name`. Domains that are not in the batch keep their state. Each
    domain is one more pass over `x`, and the derivative is that of the stages one after
    the other: exact to every order, with more passes than that of `jaxbn.batch_norm`.

    Args:
        x: a batch whose first axis lists the examples.
        states: from `init_domain_state`, leaves of shape (D, C).
        scale, bias: shape (C,) for all domains, or (D, C). Default: one and zero.
        domain: a number in [0, D) for the whole batch, or one per example, shape (B,);
            may be traced.
        axis: the feature axis; not the first one.
        axis_name, axis_groups, where, weights: as in `jaxbn.batch_norm`.
        epsilon, activation, residual, implementation: as in `jaxbn.batch_norm`.
        momentum, debias, unbiased, skip_nonfinite: as in `jaxbn.update`.

    Returns:
        y, with the shape and type of `x`, and the states for the next call.

    Raises:
        ValueError: if a shape is invalid, or a known domain is not one of `states`.
        TypeError: if `domain` is not an integer, or `states` no BatchNormState.

    Reference:
        Xie et al., Adversarial examples improve image recognition, 2019.
        https://arxiv.org/abs/1911.09665

    Example:
        >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
        >>> states = init_domain_state(2, 1)
        >>> y, states = domain_batch_norm(x, states, domain=jnp.array([0, 0, 1, 1]))
        >>> y.ravel().round(3), states.mean.ravel()
        (Array([-1.,  1., -1.,  1.], dtype=float32), Array([ 2., 20.], dtype=float32))
    """
    x, feature, states, ids = _checked(x, states, domain, axis)
    how = average_of(momentum, debias, unbiased, skip_nonfinite)
    axes, members = (feature,), group_of(axis_name, axis_groups)
    params = {"axes": axes, "implementation": dispatch.choose(implementation)}
    floor = options.epsilon(epsilon)
    where = weighting.counted(where, weights, x)
    residual = checks.residual(residual, x)

    def run(x, states, ids, scale, bias, where, residual):
        if where is not None:
            x = without_nonfinite(x, where)
        column = ids.reshape(-1, *[1] * (x.ndim - 1))

        def local(k):
            mine = column == k
            if where is not None:
                mine = jnp.where(mine, where, jnp.zeros((), where.dtype))
            return local_moments(x, mine, **params)

        old = _wide(states, x)
        # Not under vmap, which would make a copy of `x` for each domain.
        parts = [local(k) for k in range(len(old.mean))]
        parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        batch = jax.vmap(functools.partial(shared_moments, members=members))(parts)
        seen = batch.count > 0
        running = lax.rsqrt(old.var + floor)
        slope = jnp.where(seen, batch.inverse(floor), running)
        center = jnp.where(seen, batch.center, old.mean)
        delta = jnp.where(seen, batch.delta, 0)
        slope = slope * _rows("scale", scale, old, neutral=1)
        offset = _rows("bias", bias, old, neutral=0) - slope * delta
        y = _apply(x, center, slope, offset, ids, feature, residual, activation, params)
        return y, jax.vmap(public)(batch)

    run = placement.automatic(run, x, x, Moments(*states))
    y, batch = run(x, states, ids, scale, bias, where, residual)
    return y, updated(states, batch, how)


def domain_batch_norm_inference(
    x: Array,
    states: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    domain: int | Array,
    axis: int = -1,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Normalizes each example with the running statistics of its domain.

    Args:
        x, states, scale, bias, domain, axis: as in `domain_batch_norm`.
        epsilon, activation, residual, implementation: as in `jaxbn.batch_norm`.

    Returns:
        y, with the shape and type of `x`.

    Example:
        >>> states = init_domain_state(2, 1)._replace(mean=jnp.array([[1.0], [5.0]]))
        >>> x, domain = jnp.array([[1.0], [1.0]]), jnp.array([0, 1])
        >>> domain_batch_norm_inference(x, states, domain=domain).ravel().round(3)
        Array([ 0., -4.], dtype=float32)
    """
    x, feature, states, ids = _checked(x, states, domain, axis)
    params = {"implementation": dispatch.choose(implementation)}
    floor, residual = options.epsilon(epsilon), checks.residual(residual, x)

    def run(x, states, ids, scale, bias, residual):
        old = _wide(states, x)
        slope = lax.rsqrt(old.var + floor)
        slope = slope * _rows("scale", scale, old, neutral=1)
        offset = _rows("bias", bias, old, neutral=0)
        arrays = (x, old.mean, slope, offset, ids)
        return _apply(*arrays, feature, residual, activation, params)

    run = placement.automatic(run, x, x)
    return run(x, states, ids, scale, bias, residual)


def strip_domain(tree: Any, domain: int, *, num_domains: int | None = None) -> Any:
    """The statistics, scale and bias of one domain, for an ordinary layer.

    Args:
        tree: states, or any tree of arrays with the domains on the first axis.
        domain: which one to keep, for AdvProp that of the clean examples.
        num_domains: if given, only arrays of rank 2 or more with this first size are
            stripped, and others, as a shared scale, stay.

    Returns:
        The tree with leaves of one domain.

    Raises:
        TypeError: if `domain` is no integer.
        ValueError: if a leaf has no such domain.

    Example:
        >>> strip_domain(init_domain_state(2, 3), 0).mean.shape
        (3,)
    """

    hint = "It numbers the domains from 0."
    domain = options.whole("domain", domain, least=0, hint=hint)
    if num_domains is not None:
        num_domains = options.whole("num_domains", num_domains, hint=hint)
        _in_range("domain", domain, num_domains)

    def strip(leaf):
        leaf = values.array("tree", leaf)
        if num_domains is not None and (leaf.ndim < 2 or len(leaf) != num_domains):
            return leaf
        _in_range("domain", domain, len(leaf) if leaf.ndim else 0)
        return leaf[domain]

    return jax.tree.map(strip, tree)


def _wide(states: BatchNormState, x: Array) -> BatchNormState:
    wide = checks.statistics_type(x)
    return jax.tree.map(lambda v: lax.stop_gradient(v.astype(wide)), states)


def _apply(x, center, slope, offset, ids, feature, residual, activation, params):
    """The map of each example's domain: the examples are one more feature axis."""
    same = params["implementation"]
    return apply(
        x,
        center[ids],
        slope[ids],
        offset[ids],
        residual,
        axes=(0, feature),
        activation=activation,
        implementation=same,
    )


def _checked(
    x: Array, states: BatchNormState, domain: Any, axis: int | Sequence[int]
) -> tuple[Array, int, BatchNormState, Array]:
    """`x`, its feature axis, the states, and the domain of each example, shape (B,).

    Raises:
        TypeError: if a domain is no integer, or `states` is no BatchNormState.
        ValueError: if shapes do not fit, or a known domain is not one of `states`.
    """
    x = checks.array(x)
    feature = checks.one_feature_axis(x, axis)
    states = record("states", states, _STATES)
    checks.complex_mean("states", states, "`x`", x)
    ids = values.array("domain", domain)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"`domain` must be an integer, got {ids.dtype}. It numbers the domains "
            "from 0."
        )
    if ids.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"`domain` must be a scalar or have shape {x.shape[:1]} for `x` with shape "
            f"{x.shape}, got {ids.shape}. The first axis of `x` lists the examples."
        )
    if states.mean.ndim != 2 or states.mean.shape[1] != x.shape[feature]:
        raise ValueError(
            f"`states` must have shape (domains, {x.shape[feature]}), got "
            f"{states.mean.shape}. Create them with `init_domain_state`."
        )
    _in_range("domain", domain, len(states.mean))
    return x, feature, states, jnp.broadcast_to(ids, x.shape[:1])


def _in_range(name: str, domain: Any, count: int) -> None:
    """Refuses numbers of domains that there are not, where they are known."""
    values.require(
        name,
        domain,
        lambda ids: (ids >= 0) & (ids < count),
        f"at least 0 and below {count}, the number of domains",
        hint="It numbers the domains from 0.",
    )


def _rows(
    name: str, given: Array | None, states: BatchNormState, *, neutral: float
) -> Array:
    """Scale or bias with a row for each domain, (D, C)."""
    shape = states.mean.shape
    if given is None:
        return jnp.full(shape, neutral, states.var.dtype)
    given = checks.numbers(name, given, states.mean)
    if given.shape not in (shape, shape[1:]):
        raise ValueError(
            f"`{name}` must have shape {shape[1:]} or {shape}, got {given.shape}. It "
            "is shared by the domains or has a row for each."
        )
    return jnp.broadcast_to(given.astype(states.var.dtype), shape)
