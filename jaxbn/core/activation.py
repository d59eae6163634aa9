"""Activations: which function is meant, that it is elementwise, and where it runs."""

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr

from jaxbn.backends.contract import statistics_type
from jaxbn.core.positions import mixing
from jaxbn.core.types import Activation
from jaxbn.core.values import is_function, shown

_NAMED = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "leaky_relu": jax.nn.leaky_relu,
}


def function_of(value: Activation) -> Callable | None:
    """The activation as a function, or None."""
    if value is None or is_function(value):
        return value
    if isinstance(value, str) and value in _NAMED:
        return _NAMED[value]
    names = ", ".join(map(repr, _NAMED))
    raise ValueError(
        f"`activation` must be one of {names}, a function or None, got "
        f"{shown(value)}. Pass the function itself, for example `jax.nn.elu`."
    )


def is_named(function: Any) -> bool:
    """Tells whether an activation is none, or one of those with a name."""
    return function is None or any(function is known for known in _NAMED.values())


class _Mapped(NamedTuple):
    """A function of a user, for an array with one more axis in front."""

    function: Callable[[Array], Array]

    def __call__(self, values: Array) -> Array:
        return jax.vmap(self.function)(values)


def mapped(function: Any) -> Any:
    """The same activation for an array with one more axis in front."""
    inner = function.func if isinstance(function, functools.partial) else function
    return function if is_named(inner) else _Mapped(function)


def name_of(function: Any) -> str:
    """The name of a function for a message, as a user may pass it if it has one."""
    names = [repr(name) for name, known in _NAMED.items() if function is known]
    return names[0] if names else shown(function)


def split(value: Activation, x: Array) -> tuple[Any, Any]:
    """The part of the activation inside of the kernels and the part after them.

    A kernel is compiled by itself, with its activation as a hashable constant, and
    differentiates it in forward mode. What closes over a traced array, as a learned
    slope, or has a rule for reverse mode alone, as a straight-through estimator, or
    no derivative, follows as a function of its own. So does every activation of complex
    numbers.

    Raises:
        TypeError: if the activation takes other arguments, or returns no real array.
        ValueError: if it is not elementwise: no known name, another shape, or a result
            that depends on other positions.
    """
    function, real = function_of(value), not jnp.iscomplexobj(x)
    if function is None or (real and is_named(function)):
        return function, None

    def after(y):
        return function(y.astype(statistics_type(y))).astype(y.dtype)

    program = _traced(function, x)
    fixed = not any(isinstance(value, Tracer) for value in program.consts)
    inside = real and fixed and isinstance(function, Hashable)
    return (function, None) if inside and _has_tangent(after, x) else (None, after)


def _traced(function: Callable, x: Array) -> ClosedJaxpr:
    """The program of an activation, which is found to be elementwise."""
    if inspect.isfunction(function):
        try:
            inspect.signature(function).bind(x)
        except TypeError as error:
            raise TypeError(
                f"`activation` must take one array, got {shown(function)}. Bind the "
                "other arguments with `functools.partial`."
            ) from error

    def checked(y):
        out = function(y)
        if not isinstance(out, Array) or jnp.iscomplexobj(out) > jnp.iscomplexobj(y):
            raise TypeError(
                f"`activation` must return an array, real for real `x`, got "
                f"{name_of(function)} that returns {shown(out)}. Return an array of "
                "the shape of its argument."
            )
        if out.shape != y.shape:
            raise ValueError(
                f"`activation` must be elementwise, got {name_of(function)} from shape "
                f"{y.shape} to {out.shape}. Apply it to the result."
            )
        return out

    program = jax.make_jaxpr(checked)(jax.ShapeDtypeStruct(x.shape, statistics_type(x)))
    operation = mixing(program.jaxpr)
    if operation is not None:
        raise ValueError(
            f"`activation` must be elementwise, got {name_of(function)} with the "
            f"operation {operation}. Apply it to the result."
        )
    return program


def _has_tangent(function: Callable, x: Array) -> bool:
    """Tells whether a function has a derivative in forward mode too."""
    try:
        text = str(jax.make_jaxpr(lambda x: jax.jvp(function, (x,), (x,)))(x))
    except Exception:  # of any kind, as a callback to the host has no derivative
        return False
    return "custom_lin" not in text  # stands for a rule that only reverse mode can run
