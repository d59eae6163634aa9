"""What a layer keeps for the backward pass: its input, its output, or less.

"output" is the in-place activated batch normalization of Rota Bulo, Porzi and
Kontschieder, 2017, https://arxiv.org/abs/1712.02616: where the activation has an
inverse, the output says what the input was, and the next layer keeps it anyway.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from jaxbn.backends.contract import statistics_type
from jaxbn.core import calculus, sync
from jaxbn.core.kernel import Kernel, share_types, varying_axes

Residuals = Literal["input", "output", "recompute"]
"""What is kept, see `jaxbn.batch_norm`."""

SMALLEST_SCALE = 2.0**-10
"""With "output", a smaller |scale| counts as this: the output must tell the input."""


def check(residuals: Residuals, activation: Callable | None, x: Array) -> Residuals:
    """The mode, if it can be had."""
    if residuals not in ("input", "output", "recompute"):
        raise ValueError(
            "`residuals` must be 'input', 'output' or 'recompute', got "
            f"{residuals!r}. Leave it out unless memory is short."
        )
    if residuals != "input" and jnp.iscomplexobj(x):
        raise NotImplementedError(
            f"`residuals` must be 'input' for complex `x`, got {residuals!r}. Leave it "
            "out."
        )
    if residuals == "output":
        _slope(activation)
    return residuals


def _slope(activation: Callable | None) -> float:
    """The derivative of the activation at negative values."""
    if activation is None:
        return 1.0
    function, options = activation, {}
    if isinstance(activation, functools.partial) and not activation.args:
        function, options = activation.func, dict(activation.keywords)
    slope = options.pop("negative_slope", 0.01)
    known = function is jax.nn.leaky_relu and not options
    if known and isinstance(slope, float) and slope > 0:
        return slope
    raise NotImplementedError(
        "`activation` must have an inverse with residuals='output', got "
        f"{activation!r}. Use None, 'leaky_relu' or functools.partial(jax.nn."
        "leaky_relu, negative_slope=0.1), or residuals='recompute'."
    )


def invertible(scale: Array | None) -> Array | None:
    """`scale` with a |scale| of at least `SMALLEST_SCALE`; a derivative of one."""
    if scale is None:
        return None
    least = jnp.where(scale < 0, -SMALLEST_SCALE, SMALLEST_SCALE)
    used = jnp.where(jnp.abs(scale) < SMALLEST_SCALE, least, scale)
    return scale + lax.stop_gradient(used - scale)


def tangent(layer: Any, inputs: Any, change: Any, y, inverse, count) -> Array:
    """The tangent of the output y = f(z + residual), from y instead of x.

    With z = scale (x - mean) r + bias and q = z - bias, the line of `batch_norm` reads

        dz = scale r dx + k q + h,
        k = dscale / scale - r T / (scale n),   T = sum(dx q),
        h = dbias - scale r S / n,              S = sum(dx).

    f is linear on either side of zero: z = y / f' - residual, so that

        T = sum(dx / f' y) - sum(dx residual) - bias S,
        dy = f' (scale r dx + h - k bias - k residual + dresidual) + k y,

    and no array is used that is not y or a residual. `layer`, `inputs` and `change` are
    those of `batch_norm`, `inverse` is r.
    """
    scale = jnp.ones_like(inverse) if inputs.scale is None else inputs.scale
    k = h = jnp.zeros_like(scale)
    dz, bias = None, k if inputs.bias is None else inputs.bias
    if change.x is not None:
        gain, n = scale * inverse, jnp.maximum(count, 1)
        dz, s, t = _sums(layer, inputs, change.x, y, bias, gain)
        s, t = sync.totals((s, t), layer.members)
        k, h = -inverse / scale * t / n, -gain * s / n
    if change.scale is not None:
        k = k + change.scale / scale
    if change.bias is not None:
        h = h + change.bias
    k, h = cast_together((k, h - k * bias), y)
    return _outer(layer, inputs.residual, change.residual, y, dz, k, h)


def _sums(layer: Any, inputs: Any, dx, y, bias, gain):
    """gain dx, S and T."""
    residual, where, kernel = inputs.residual, inputs.where, layer.kernel
    if residual is None and layer.activation is None:
        return calculus.sums(dx, y, bias, gain, where, **kernel)
    zero = jnp.zeros_like(bias)
    other = y if residual is None else residual
    dz, s, r = calculus.sums(dx, other, zero, gain, where, **kernel)
    back = _gated(layer, dx, y, _inverse(_slope(layer.activation)))
    _, t = calculus.sums(back, y, zero, None, where, **kernel)
    t = t - bias * s
    return dz, s, t if residual is None else t - r


def _outer(layer: Any, residual, d_residual, y, dz, k, h) -> Array:
    """f' (dz + h - k residual + dresidual) + k y."""
    zero, kernel = jnp.zeros_like(k), layer.kernel
    if residual is None and layer.activation is None:
        return calculus.expand(dz, None, k, h, y, zero, None, **kernel)[0]
    other, slope = (y, zero) if residual is None else (residual, -k)
    (dz,) = calculus.expand(dz, None, slope, h, other, zero, None, **kernel)
    dz = dz if d_residual is None else dz + d_residual
    dy = _gated(layer, dz, y, layer.activation)
    return calculus.expand(dy, None, k, zero, y, zero, None, **kernel)[0]


def _gated(layer: Any, values: Array, y: Array, function: Callable | None) -> Array:
    """`values` times the derivative of `function`, which depends on the sign of y."""
    if layer.activation is None:
        return values
    zero = jnp.zeros([y.shape[axis] for axis in layer.axes], statistics_type(y))
    line = (zero, jnp.ones_like(zero), zero, None)
    return calculus.gate(values, y, *line, activation=function, **layer.kernel)[0]


@functools.cache
def _inverse(slope: float) -> Callable:
    return functools.partial(jax.nn.leaky_relu, negative_slope=1 / slope)


def cast_together(vectors: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
    """Casts vectors to the type of `x` as one: one all-reduce sums their cotangents."""
    if not varying_axes(x):
        return vectors
    return tuple(share_types([jnp.stack(vectors), x])[0])


# The loops of `expand` under a name of their own, for `recompute_policy` to look for.
recomputed = Kernel("expand", calculus.expand.operands)
recomputed.primitive.name = "jaxbn_recomputed"


def _recomputed_jvp(primals, tangents, **params):
    plain = ad.primitive_jvps[calculus.expand.primitive]
    _, changes = plain(primals, tangents, **params)
    return recomputed.primitive.bind(*primals, **params), changes


ad.primitive_jvps[recomputed.primitive] = _recomputed_jvp


def expand(residuals: Residuals) -> Kernel:
    """The primitive that computes the output."""
    return recomputed if residuals == "recompute" else calculus.expand


def recompute_policy(primitive: Any, *_: Any, **params: Any) -> bool:
    """Saves everything but the outputs of layers with `residuals="recompute"`.

    For `jax.checkpoint(function, policy=jaxbn.recompute_policy)` and `flax.linen.remat`
    around a model, a block or a loss. What is behind such a layer, a convolution say,
    then keeps no input: the backward pass computes it again, in one elementwise pass
    over what the layer itself keeps. The output of a layer with `residual` is kept:
    it would take the outputs of all blocks before it.

    Args:
        primitive, params: of an equation, as JAX passes them to a policy.

    Returns:
        Whether the result of the equation may be kept.

    Example:
        >>> state, x = jaxbn.init_state(4), jnp.ones((8, 4))
        >>> def loss(weights):
        ...     norm = {"activation": "relu", "residuals": "recompute"}
        ...     y, _ = jaxbn.batch_norm(x @ weights, state, **norm)
        ...     return (y @ weights).sum()
        >>> saving = jax.checkpoint(loss, policy=jaxbn.recompute_policy)
        >>> first, second = (jax.jit(jax.grad(f))(jnp.eye(4)) for f in (saving, loss))
        >>> jnp.allclose(first, second)
        Array(True, dtype=bool)
    """
    return primitive is not recomputed.primitive or params["present"][0]
