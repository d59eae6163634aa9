"""Batch normalization in training: check, moments, sync, normalize, and update beside.

The derivative is exact for every order and needs `x` and vectors only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.backends import dispatch
from jaxbn.core import by_input, by_output, calculus, checks, options, sync, weighting
from jaxbn.core.activation import function_of, split
from jaxbn.core.affine import affine, widened
from jaxbn.core.moments import (
    Centered,
    group_of,
    known_count,
    local_moments,
    public,
    shared_moments,
    with_sums,
)
from jaxbn.core.normalize import apply
from jaxbn.core.primitives import finite
from jaxbn.core.records import record
from jaxbn.core.save import Save
from jaxbn.core.save import check as check_save
from jaxbn.core.state import average_of, updated
from jaxbn.core.types import Activation, AxisGroups, AxisName, BatchNormState, Moments


class _Layer(NamedTuple):
    """Constants of the compiled program."""

    axes: tuple[int, ...]
    affine_axes: tuple[int, ...]
    members: sync.Members | None
    epsilon: float
    activation: Callable[[Array], Array] | None
    implementation: str
    save: Save

    @property
    def params(self):
        """Parameters of the ops that multiply `x` by scale, or by its cotangent."""
        return {"axes": self.affine_axes, "implementation": self.implementation}


class _Inputs(NamedTuple):
    """Arrays that change from call to call; None where absent."""

    x: Array
    scale: Array | None
    bias: Array | None
    residual: Array | None
    where: Array | None
    state: BatchNormState


def batch_norm(
    x: Array,
    state: BatchNormState,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    axis_name: AxisName | None = None,
    axis_groups: AxisGroups | None = None,
    where: Array | None = None,
    weights: Array | None = None,
    momentum: float | Array | None = 0.99,
    epsilon: float = 1e-5,
    activation: Activation = None,
    residual: Array | None = None,
    save: Save = "input",
    implementation: str | None = None,
    debias: bool = True,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Array, BatchNormState]:
    """Normalizes `x` with the statistics of this batch and updates the running ones.

    For every channel c,

        y_c = activation((x_c - mean_c) / sqrt(var_c + epsilon) * scale_c + bias_c
                         + residual_c)

    where mean and biased variance run over all other axes, over the positions where
    `where` is true, and over the members of `axis_name`. Masked positions of `x` are
    normalized too, but count in no statistic, whatever they hold. A channel without
    any valid value is normalized with the running statistics. With weights w_i,

        mean_c = sum_i w_i x_ic / sum_i w_i,
        var_c = sum_i w_i |x_ic - mean_c|^2 / sum_i w_i.

    Args:
        x: a batch of any rank >= 1; float16, bfloat16, float32, float64 or complex.
        state: running statistics, equal on all members of `axis_name`.
        scale: multiplies each channel; the shape of the feature axes. With axes of the
            batch in front, as (N, C), or the rank of `x`, as (N, 1, 1, C), each example
            or position has its own (conditional batch normalization). Default: one.
        bias: added to each channel; such a shape. Default: zero.
        axis: the feature axis, or a tuple of them.
        axis_name: mesh or vmap axes to share statistics over, inside `jax.vmap`,
            `jax.pmap` or `jax.shard_map`. Under plain `jax.jit` it is not needed: the
            statistics cover the global batch however it is sharded.
        axis_groups: positions along `axis_name` that share statistics, for example
            [[0, 1], [2, 3]]. Default: all of them.
        where: boolean mask that broadcasts to the shape of `x`. Default: all true.
        weights: how much each position counts, >= 0; broadcasts to the shape of `x`.
            A whole number is that many equal rows, zero is masked; gradients flow into
            them. With `unbiased`, var is divided by sum_i w_i - 1. Default: all one.
        momentum: weight of the old running value, in [0, 1); may be traced. None
            averages all batches equally.
        epsilon: added to the variance, > 0; a Python number.
        activation: "relu", "relu6", "silu", "gelu", "leaky_relu", an elementwise
            function or None. A function may close over traced arrays, say a learned
            slope; it then follows as a step of its own, after y has been rounded.
        residual: the shape of `x`; added before the activation.
        save: what is kept for the backward pass. "input": `x`. "output": y alone,
            which the next layer keeps anyway; the activation must have an inverse, and
            a |scale| below 2^-10 counts as 2^-10. "recompute": `x`, and y is computed
            again, also for the next layer, under `jaxbn.recompute_policy`.
        implementation: "xla", "native", or None for the fastest that is right.
        debias, unbiased, skip_nonfinite: how the running statistics are updated, see
            `jaxbn.update`.

    Returns:
        y, with the shape and type of `x`, and the state for the next call.

    Raises:
        ValueError: if a shape, `axis`, `axis_name`, `axis_groups`, `momentum`,
            `epsilon`, `activation` or `implementation` is invalid, a known statistic
            is impossible, or with `unbiased` there is one value per channel.
        TypeError: if `x` is an integer array, `where` is not boolean, `weights` are not
            real, `state` is no BatchNormState, or a constant of the program is traced.
        NotImplementedError: if `save` is "output" and `activation` neither None
            nor "leaky_relu", also as functools.partial with `negative_slope`, or there
            are `weights`.

    Reference:
        Ioffe and Szegedy, Batch Normalization, 2015, Algorithm 1.
        https://arxiv.org/abs/1502.03167

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> y, state = jaxbn.batch_norm(x, jaxbn.init_state(1))
        >>> y.round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)
    """
    x = checks.array(x)
    axes = checks.feature_axes(x, axis)
    how = average_of(momentum, debias, unbiased, skip_nonfinite)
    mode = check_save(save, function_of(activation), x, weights)
    function, after = split(activation, x)
    scale, bias, affine_axes = affine(scale, bias, x, axes)
    layer = _Layer(
        axes,
        affine_axes,
        group_of(axis_name, axis_groups),
        options.epsilon(epsilon),
        function,
        dispatch.choose(implementation),
        mode,
    )
    where, state = weighting.counted(where, weights, x), record("state", state)
    count = known_count(x, where, layer.members, axes)
    checks.enough_values(count, unbiased=how.unbiased)
    inputs = _Inputs(
        x,
        scale,
        bias,
        checks.residual(residual, x),
        where,
        checks.statistics(state, x, axes),
    )
    if save == "output":
        inputs = inputs._replace(scale=by_output.invertible(inputs.scale))
    y, batch = (_composed if jnp.iscomplexobj(x) else _normalized)(layer, inputs)
    return y if after is None else after(y), updated(state, batch, how)


def _without_masked_nonfinite(layer: _Layer, inputs: _Inputs) -> _Inputs:
    """Zero instead of NaN or infinity where masked: 0 * NaN would reach gradients."""
    x, where = inputs.x, inputs.where
    if where is None:
        return inputs
    (x,) = finite(x, where.astype(bool), **layer.params)
    return inputs._replace(x=x)


class _Line(NamedTuple):
    """The affine map of each channel: slope * (x - center) + offset."""

    center: Array
    slope: Array
    offset: Array


def _line(layer: _Layer, inputs: _Inputs, batch: Centered) -> _Line:
    """The line through the moments; running statistics where nothing was seen."""
    center, delta, inverse = batch.center, batch.delta, batch.inverse(layer.epsilon)
    if not isinstance(batch.count, float) or batch.count == 0:
        seen = jnp.asarray(batch.count) > 0
        center = jnp.where(seen, center, inputs.state.mean)
        delta = jnp.where(seen, delta, 0)
        running = lax.rsqrt(inputs.state.var + layer.epsilon)
        inverse = jnp.where(seen, inverse, running)
    if layer.affine_axes != layer.axes:
        # As one array: one all-reduce sums the cotangents of both.
        vectors = sync.cast_together((delta, inverse), inputs.x)
        by = (inputs.x, layer.axes, layer.affine_axes)
        delta, inverse = widened(jnp.stack(vectors), *by)
        center = widened(center, *by)
    slope = inverse if inputs.scale is None else inverse * inputs.scale
    offset = -slope * delta
    offset = offset if inputs.bias is None else offset + inputs.bias
    return _Line(center, slope, offset)


def _local_moments(layer: _Layer, inputs: _Inputs) -> Centered:
    by = {"axes": layer.axes, "implementation": layer.implementation}
    return local_moments(inputs.x, inputs.where, **by)


def _composed(layer: _Layer, inputs: _Inputs) -> tuple[Array, Moments]:
    """y and the moments of the batch, differentiated stage by stage."""
    inputs = _without_masked_nonfinite(layer, inputs)
    local = _local_moments(layer, inputs)
    batch = shared_moments(local, layer.members)
    return _output(layer, inputs, _line(layer, inputs, batch)), public(batch)


def _output(layer: _Layer, inputs: _Inputs, line: _Line) -> Array:
    options = {"activation": layer.activation, **layer.params}
    return apply(inputs.x, *line, inputs.residual, **options)


def _normalized(layer: _Layer, inputs: _Inputs) -> tuple[Array, Moments]:
    """The same with a derivative of two passes; the moments are constants in it.

    The derivative of z = slope (x - center) + offset with respect to x is, with sums
    over the n values of all members that count,

        dz = slope dx + (x - center) dslope + doffset,
        dslope, doffset from d sum(x - center) = sum(dx),
                             d sum((x - center)^2) = 2 sum(dx (x - center)).

    `center` is a constant. One pass over (dx, x) gives slope dx and the two sums, a
    second one the result. Their transposes are the two passes of the backward pass.
    Between them are plain sums over the members and arithmetic on vectors.
    """
    inputs = _without_masked_nonfinite(layer, inputs)
    local = _local_moments(layer, inputs).constant
    batch = local if layer.members is None else sync.merged(local, layer.members)
    constant = _line(layer, lax.stop_gradient(inputs), batch.constant)
    weight: tuple[Array, ...] = ()
    if inputs.where is not None and inputs.where.dtype != jnp.bool_:
        weight = (jnp.asarray(calculus.count(inputs.x, inputs.where, layer.axes)),)

    def line(sums) -> _Line:
        if layer.affine_axes != layer.axes:
            at = [i + 1 for i, a in enumerate(layer.affine_axes) if a not in layer.axes]
            sums = jnp.stack(sums).sum(at)
        first, second, *total = sync.totals((*sums, *weight), layer.members)
        second = (second * batch.shrink) * batch.shrink
        center, *line = _line(layer, inputs, with_sums(batch, first, second, *total))
        return _Line(center, *sync.cast_together(tuple(line), inputs.x))

    carried, *sums = by_input.start(layer, inputs, constant)
    found = line(sums)
    y = by_input.output(layer, inputs, found, carried)
    if layer.save == "output":
        carried, *sums = by_output.start(layer, inputs, found, y)
        y = by_output.output(layer, inputs, found, y, carried, line(sums))
    return y, public(batch)
