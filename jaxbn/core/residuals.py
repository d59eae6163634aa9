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
        _inverse_slope(activation)
    return residuals


def _inverse_slope(activation: Callable | None) -> float:
    """What a negative output is multiplied with to undo the activation."""
    if activation is None:
        return 1.0
    function, options = activation, {}
    if isinstance(activation, functools.partial) and not activation.args:
        function, options = activation.func, dict(activation.keywords)
    slope = options.pop("negative_slope", 0.01)
    known = function is jax.nn.leaky_relu and not options
    if known and isinstance(slope, float) and slope > 0:
        return 1 / slope
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
    """The tangent of the output y, from y instead of x.

    With z = scale (x - mean) r + bias, which is y without activation and residual, and
    q = z - bias, the line of `batch_norm` reads

        dz = scale r dx + (dscale / scale - r T / (scale n)) q + dbias - scale r S / n,
        S = sum(dx),   T = sum(dx q).

    `layer`, `inputs` and their `change` are those of `batch_norm`, `inverse` is r.
    `layer`, `inputs` and their `change` are those of `batch_norm`, `inverse` is r. The
    two passes are checkpointed each, so that y is kept for the backward pass and z is
    found in it again; not the all-reduce between them, whose axis may be unbound there.
    """
    scale = jnp.ones_like(inverse) if inputs.scale is None else inputs.scale
    zero = jnp.zeros_like(scale)
    bias = zero if inputs.bias is None else inputs.bias
    slope, offset, dz = zero, zero, None
    first, second = (
        jax.checkpoint(functools.partial(f, layer)) for f in (_first_pass, _second_pass)
    )
    if change.x is not None:
        gain, n = scale * inverse, jnp.maximum(count, 1)
        dz, s, t = first(change.x, y, inputs.residual, inputs.where, bias, gain)
        s, t = sync.totals((s, t), layer.members)
        slope, offset = -inverse / scale * t / n, -gain * s / n
    if change.scale is not None:
        slope = slope + change.scale / scale
    if change.bias is not None:
        offset = offset + change.bias
    both = cast_together((slope, offset), y)
    return second(dz, change.residual, both, y, inputs.residual, bias)


def _first_pass(layer: Any, dx, y, residual, where, bias, gain) -> list[Array]:
    z = _before_activation(y, residual, layer.activation)
    return calculus.sums(dx, z, bias, gain, where, **layer.kernel)


def _second_pass(layer: Any, dz, d_residual, both, y, residual, bias) -> Array:
    z = _before_activation(y, residual, layer.activation)
    (dz,) = calculus.expand(dz, None, *both, z, bias, None, **layer.kernel)
    dz = dz if d_residual is None else dz + d_residual
    if layer.activation is None:
        return dz
    # The derivative depends on the sign only, and y has the sign of what it was.
    zero = jnp.zeros_like(bias)
    line = (zero, jnp.ones_like(bias), zero, None)
    kind = {"activation": layer.activation, **layer.kernel}
    return calculus.gate(dz, y, *line, **kind)[0]


def _before_activation(y, residual: Array | None, activation: Callable | None) -> Array:
    """scale * (x - mean) / std + bias, recovered from the output."""
    if activation is None and residual is None:
        return y
    z = y.astype(statistics_type(y))
    z = jnp.where(z < 0, z * _inverse_slope(activation), z)
    return (z if residual is None else z - residual).astype(y.dtype)


def cast_together(vectors: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
    """Casts vectors to the type of `x` as one: one all-reduce sums their cotangents."""
    if not varying_axes(x):
        return vectors
    return tuple(share_types([jnp.stack(vectors), x])[0])


# The loops of `expand` under a name of their own, for `recompute_policy` to look for.
recomputed = Kernel("expand", calculus.expand.operands)


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
        >>> jnp.allclose(jax.grad(saving)(jnp.eye(4)), jax.grad(loss)(jnp.eye(4)))
        Array(True, dtype=bool)
    """
    return primitive is not recomputed.primitive or params["present"][0]
