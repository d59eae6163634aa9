"""Tells whether a function of an array treats each position alone.

The program of the function is followed with, for each array that depends on the values,
which of its axes run over the positions. Read in order, these axes list all positions
as the argument does. The others are extra: those of `stack`, for example, over which
anything may be done. An operation that is not known to keep the positions mixes them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxbn.core import moving
from jaxbn.core.moving import Axes, MixedError, check_whole, common, joined

_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2",
    "atanh", "bessel_i0e", "bessel_i1e", "bitcast_convert_type", "cbrt", "ceil",
    "clamp", "clz", "complex", "conj", "convert_element_type", "copy", "cos", "cosh",
    "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag", "integer_pow",
    "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic", "lt", "lt_to",
    "max", "min", "mul", "mulhi", "name", "ne", "neg", "nextafter", "not", "or",
    "polygamma", "polynomial", "population_count", "pow", "pvary", "real",
    "reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt",
    "select_n", "sharding_constraint", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor", "zeta",
    # Nobody can look inside: who passes one says that it is elementwise.
    "ffi_call", "pallas_call", "pure_callback",
}  # fmt: skip
_REDUCTIONS = {
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or",
    "reduce_prod", "reduce_sum", "reduce_xor",
}  # fmt: skip
# Operations along the axis that is a parameter of this name.
_ALONG = {
    "concatenate": "dimension", "cumlogsumexp": "axis", "cummax": "axis",
    "cummin": "axis", "cumprod": "axis", "cumsum": "axis", "sort": "dimension",
    "split": "axis",
}  # fmt: skip


def mixing(program: Jaxpr) -> str | None:
    """Returns an operation of a function of one array that mixes positions, or None."""
    shape = moving.shape_of(program.invars[0])
    if math.prod(shape) in (0, 1):
        return None
    given = tuple(n != 1 for n in shape)
    try:
        (result,) = _results(program, [given])
    except MixedError as found:
        return str(found)
    return None if result in (None, given) else "broadcast_in_dim"


def _results(program: Jaxpr, given: Sequence[Axes]) -> Sequence[Axes]:
    """The axes of what a program returns."""
    known = dict(zip(program.invars, given, strict=True))

    def of(variable: Any) -> Axes:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in program.eqns:
        operands = [of(v) for v in equation.invars]
        if any(operand is not None for operand in operands):
            results = _step(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
    return [of(v) for v in program.outvars]


def _step(equation: JaxprEqn, operands: list[Axes]) -> Sequence[Axes]:
    name, params = equation.primitive.name, equation.params
    if name in _ELEMENTWISE or name in _ALONG:
        along = [params[_ALONG[name]]] if name in _ALONG else []
        axes = common(name, operands, along)
        check_whole(equation, axes, operands)
        return [axes] * len(equation.outvars)
    if name in _REDUCTIONS:
        axes = common(name, operands, params["axes"])
        kept = (of for i, of in enumerate(axes) if i not in params["axes"])
        return [tuple(kept)]
    if name in _RULES:
        return _RULES[name](equation, operands)
    parts = [p for p in params.values() if isinstance(p, ClosedJaxpr | Jaxpr)]
    if len(parts) == 1 and len(_open(parts[0]).invars) == len(operands):
        return _results(_open(parts[0]), operands)
    raise MixedError(name)


def _open(program: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _cond(equation, operands):
    index, *given = operands
    branches = [_results(_open(b), given) for b in equation.params["branches"]]
    if index is not None:
        raise MixedError("cond")
    return [joined("cond", of) for of in zip(*branches, strict=True)]


def _composed(equation, operands):
    """An operation that says what it consists of, as `searchsorted` since JAX 0.12."""
    whole = equation.params["_prim"]

    def parts(*values):
        return whole.expand(*jax.tree.unflatten(whole.in_tree, values))

    return _results(jax.make_jaxpr(parts)(*whole.in_avals_flat).jaxpr, operands)


def _while(equation, operands):
    params = equation.params
    first = params["cond_nconsts"]
    consts, carry = _split(operands[first:], params["body_nconsts"])
    return _fixed("while", _open(params["body_jaxpr"]), consts, carry, [])[0]


def _scan(equation, operands):
    params = equation.params
    if "num_consts" in params:
        sizes = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.12
        sizes = [len(list(part.vals)) for part in params["ft_in"].unpack()]
    consts, rest = _split(operands, sizes[0])
    carry, sequences = _split(rest, sizes[1])
    rows = [None if axes is None else axes[1:] for axes in sequences]
    found, results = _fixed("scan", _open(params["jaxpr"]), consts, carry, rows)
    # A loop over positions: each row of the results is of one row of the values.
    along = any(axes is not None and axes[0] for axes in sequences)
    others = [*consts, *found, *(axes for axes in sequences if axes and not axes[0])]
    if along and any(axes is not None for axes in others):
        raise MixedError("scan")
    return [*found, *(None if axes is None else (along, *axes) for axes in results)]


def _fixed(name, body: Jaxpr, consts, carry, rows):
    """The axes of what a loop carries, and of its other results."""
    while True:
        results, others = _split(_results(body, [*consts, *carry, *rows]), len(carry))
        both = [joined(name, of) for of in zip(carry, results, strict=True)]
        if both == list(carry):
            return both, others
        carry = both


def _split(values, count: int):
    return list(values[:count]), list(values[count:])


_RULES: dict[str, Callable[[Any, Any], Sequence[Axes]]] = {
    **moving.RULES,
    "call_hi_primitive": _composed,
    "cond": _cond,
    "debug_callback": lambda equation, operands: [],
    "debug_print": lambda equation, operands: [],
    "optimization_barrier": lambda equation, operands: operands,
    "scan": _scan,
    "while": _while,
}
