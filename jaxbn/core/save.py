"""The choice of what a layer keeps for the backward pass."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive

from jaxbn.core import by_input, by_output
from jaxbn.core.options import one_of
from jaxbn.core.values import shown

Save = Literal["input", "output", "recompute"]
"""Choice of what is kept, see `jaxbn.batch_norm`."""


def check(
    save: Save, activation: Callable | None, x: Array, weights: Any = None
) -> Save:
    """Validates `save` for this input, activation and weights."""
    check_mode(save)
    if save != "input" and jnp.iscomplexobj(x):
        raise NotImplementedError(
            f"`save` must be 'input' for complex `x`, got {save!r}. Leave it out."
        )
    if save == "output" and weights is not None:
        raise NotImplementedError(
            "`save` must be 'input' or 'recompute' with `weights`, got 'output'. The "
            "output does not tell their gradient."
        )
    if save == "output":
        by_output.negative_slope(activation)
    return save


def check_mode(save: Any) -> None:
    """Validates `save` for any input and activation."""
    hint = "Leave it out unless memory is short."
    one_of("save", save, ("input", "output", "recompute"), hint=hint)


def recompute_policy(primitive: Any, *_: Any, **params: Any) -> bool:
    """Saves everything but the outputs of layers with `save="recompute"`.

    For `jax.checkpoint(function, policy=jaxbn.recompute_policy)` and `flax.linen.remat`
    around a model, a block or a loss. What is behind such a layer, a convolution say,
    then keeps no input: the backward pass computes it again, in one elementwise pass
    over what the layer itself keeps. The output of a layer with `residual` is kept:
    it would take the outputs of all blocks before it.

    Args:
        primitive, params: of an equation, as JAX passes them to a policy.

    Returns:
        Whether the result of the equation may be kept.

    Raises:
        TypeError: if `primitive` is something else, as the function itself.

    Example:
        >>> state, x = jaxbn.init_state(4), jnp.ones((8, 4))
        >>> def loss(weights):
        ...     norm = {"activation": "relu", "save": "recompute"}
        ...     y, _ = jaxbn.batch_norm(x @ weights, state, **norm)
        ...     return (y @ weights).sum()
        >>> saving = jax.checkpoint(loss, policy=jaxbn.recompute_policy)
        >>> first, second = (jax.jit(jax.grad(f))(jnp.eye(4)) for f in (saving, loss))
        >>> jnp.allclose(first, second)
        Array(True, dtype=bool)
    """
    if not isinstance(primitive, Primitive):
        raise TypeError(
            f"`primitive` must be that of an equation, got {shown(primitive)}. Write "
            "`jax.checkpoint(function, policy=jaxbn.recompute_policy)`."
        )
    if primitive is by_input.finish.primitive:
        return params["save"] != "recompute" or params["present"][1]  # the residual
    return primitive is not by_input.begin.primitive  # which returns its operand
