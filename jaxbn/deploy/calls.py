"""Plans which layer each batch normalization is folded into, from recorded calls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn.core import options
from jaxbn.core.records import COUNT
from jaxbn.core.types import BatchNormState
from jaxbn.deploy.fold import fold
from jaxbn.deploy.freeze import freeze

Order = Literal["after", "before"]
Arrays = dict[str, Any]
UNSEEN = (
    "no call of it as a plain batch normalization was seen (inside `nn.jit` one is "
    "seen only if the model did not run before, or after `jax.clear_caches()`)"
)
STACKED = "has stacked variables, from a lifted transformation"

_compiled_fold = jax.jit(
    fold, static_argnames=("order", "axis", "input_axis", "groups")
)


class Call(NamedTuple):
    """One call of a layer.

    Attributes:
        path: the path of its variables, "block/conv".
        kind: "norm", "dense", "conv" or "transposed".
        input, output: the very arrays, for comparison by identity.
        epsilon: of a batch normalization.
        axis: the axis of the kernel that lists the output channels.
        groups: the feature group count.
        pads: whether zeros are added around the input.
        has_bias: whether there is a bias variable, or could be.
        linear: False if an activation or a residual is part of the layer.
        obstacle: why nothing can be folded here, or None.
    """

    path: str
    kind: str
    input: Any
    output: Any
    epsilon: float
    axis: int
    groups: int
    pads: bool
    has_bias: bool
    linear: bool
    obstacle: str | None


class Fold(NamedTuple):
    """One layer that took over a batch normalization."""

    layer: str
    order: Order


class FoldReport(NamedTuple):
    """The outcome of folding.

    Attributes:
        folded: the layer each batch normalization went into, by path.
        kept: the reason for each one that stays, by path.
        error: largest absolute difference between the outputs of the two models on
            the example, divided by the largest absolute output or one.
    """

    folded: dict[str, Fold]
    kept: dict[str, str]
    error: float


def tolerance_of(value: Any) -> Any:
    """The largest accepted error, or None for one that fits the types."""
    if value is None:
        return None
    hint = "Leave it out for one that fits the types of the model."
    return options.number("tolerance", value, *COUNT, hint=hint)


def fold_all(
    calls: list[Call],
    values: Any,
    *,
    norms: Iterable[str],
    outputs: Callable[[Any], Any],
    fold_one: Callable[[Any, Call, Call, Order], Any],
    tolerance: float | None,
) -> tuple[Any, FoldReport]:
    """Folds one after the other and undoes what changes the outputs.

    Args:
        calls: in order.
        values: the variables of the model.
        norms: the paths of all batch normalizations, called or not.
        outputs: those of the model, for variables.
        fold_one: (variables, norm, layer, order) -> variables.
        tolerance: largest accepted `FoldReport.error`; None for one that fits the
            coarsest type in the model.
    """
    first = outputs(values)
    coarse = _coarsest([c.output for c in calls] + jax.tree.leaves(first))
    if tolerance is None:
        tolerance = max(1e-4, 4 * float(coarse.eps))
    want = _vector(first)
    size = max(1.0, float(np.abs(want).max(initial=0)))
    folded, kept, error = {}, {}, 0.0
    for norm in (c for c in calls if c.kind == "norm"):
        found = _partner(norm, calls, taken={f.layer for f in folded.values()})
        if isinstance(found, str):
            kept[norm.path] = found
            continue
        layer, order = found
        changed = fold_one(values, norm, layer, order)
        got = _vector(outputs(changed))
        difference = float(np.abs(got - want).max(initial=0)) / size
        if not difference <= tolerance:
            # Rounding adds up over layers, to more than one step.
            why = (
                f"likely rounding to {coarse.dtype}, pass a larger `tolerance`"
                if difference <= 8 * coarse.eps
                else "likely a value between the two is used elsewhere"
            )
            kept[norm.path] = (
                f"folding into {layer.path} changes the output by {difference:.1e}, "
                f"more than {tolerance:.1e}: {why}"
            )
            continue
        values, error = changed, difference
        folded[norm.path] = Fold(layer.path, order)
    called = {c.path for c in calls}
    kept.update((path, UNSEEN) for path in norms if path not in called)
    return values, FoldReport(folded, kept, error)


def fold_arrays(
    own: Arrays, other: Arrays, norm: Call, layer: Call, order: Order
) -> tuple[Arrays, Arrays]:
    """The arrays of the two layers after folding, by name.

    The normalization becomes the identity, apart from a bias that `other` has no
    variable for.
    """
    mean, var = own["mean"], own["var"]
    state = BatchNormState(mean, var, jnp.zeros_like(var))
    frozen = freeze(state, own.get("scale"), own.get("bias"), epsilon=norm.epsilon)
    kernel, new = _compiled_fold(
        other["kernel"],
        other.get("bias"),
        frozen,
        order=order,
        axis=layer.axis,
        input_axis=-3 - layer.axis,
        groups=layer.groups,
    )
    left = jnp.zeros_like(mean) if "bias" in other else -new.astype(mean.dtype)
    neutral = {"mean": left, "var": jnp.ones_like(var) - norm.epsilon}
    neutral["scale"] = jnp.ones_like(own.get("scale", var))
    neutral["bias"] = jnp.zeros_like(own.get("bias", var))
    kept = {"kernel": kernel, "bias": new}
    return {k: neutral.get(k, v) for k, v in own.items()}, {
        k: kept.get(k, v) for k, v in other.items()
    }


def _partner(norm: Call, calls: list[Call], taken) -> tuple[Call, Order] | str:
    """The layer to fold into and the order, or why there is none."""
    if sum(c.path == norm.path for c in calls) > 1:
        return "it is called more than once"
    if norm.obstacle:
        return norm.obstacle
    layers = [c for c in calls if c.kind != "norm"]
    pairs: list[tuple[Call, Order]] = []
    pairs.extend((c, "after") for c in layers if c.output is norm.input)
    if norm.linear:
        pairs.extend((c, "before") for c in layers if c.input is norm.output)
    reason = "its input is not the output of a dense or convolution layer"
    for layer, order in pairs:
        if obstacle := _obstacle(layer, order, calls, taken):
            reason = f"{layer.path} {obstacle}"
        else:
            return layer, order
    return reason


def _obstacle(layer: Call, order: Order, calls: list[Call], taken) -> str | None:
    if layer.obstacle:
        return layer.obstacle
    if sum(c.path == layer.path for c in calls) > 1:
        return "is called more than once"
    if order == "after":
        return None
    if layer.path in taken:
        return "has taken another one"
    if layer.kind == "transposed":
        return "is transposed, so the bias would depend on the position"
    if layer.pads:
        return "pads with zeros, which the batch normalization before it would move"
    return None if layer.has_bias else "has no bias to take the shift"


def first_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The input of a call, by position or a name that Flax gives it, or None."""
    return args[0] if args else kwargs.get("x", kwargs.get("inputs"))


def pads(padding: Any) -> bool:
    """Tells whether a Flax `padding` adds zeros."""
    if isinstance(padding, str):
        return padding.upper() not in ("VALID", "CIRCULAR")
    return bool(np.any(np.asarray(padding) != 0))


def _coarsest(arrays: Iterable[Any]) -> Any:
    """The `jnp.finfo` of the type with the fewest digits."""
    kinds = {jnp.result_type(a) for a in arrays}
    floats = [jnp.finfo(k) for k in kinds if jnp.issubdtype(k, jnp.inexact)]
    return max(floats, key=lambda f: f.eps, default=jnp.finfo(jnp.float32))


def _vector(outputs: Any) -> np.ndarray:
    leaves = [np.ravel(np.asarray(v, np.float64)) for v in jax.tree.leaves(outputs)]
    return np.concatenate(leaves)
