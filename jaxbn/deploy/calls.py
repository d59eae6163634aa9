"""Plans which layer each batch normalization is folded into, from recorded calls."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn.core.types import BatchNormState
from jaxbn.deploy.compare import coarsest, difference_of, require_telling
from jaxbn.deploy.describe import Call
from jaxbn.deploy.fold import fold
from jaxbn.deploy.freeze import freeze

Order = Literal["after", "before"]
Arrays = dict[str, Any]
UNSEEN = (
    "no call of it as a plain batch normalization was seen (inside `nn.jit` one is "
    "seen only if the model did not run before, or after `jax.clear_caches()`)"
)
_compiled_fold = jax.jit(
    fold, static_argnames=("order", "axis", "input_axis", "groups")
)


class Fold(NamedTuple):
    """One layer that took over a batch normalization.

    Attributes:
        layer: its path.
        order: where the batch normalization stands: "after" or "before" the layer.
        rest: whether its activation or residual stays, which is no part of `layer`.
    """

    layer: str
    order: Order
    rest: bool = False


class FoldReport(NamedTuple):
    """The outcome of folding.

    Attributes:
        folded: the layer each batch normalization went into, by path.
        kept: the reason for each one that stays, by path.
        error: largest absolute difference between the outputs of the two models on
            the example, each array divided by its own largest absolute value.
    """

    folded: dict[str, Fold]
    kept: dict[str, str]
    error: float


def fold_all(
    calls: list[Call],
    values: Any,
    *,
    norms: Iterable[str],
    outputs: Callable[[Any], Any],
    fold_one: Callable[[Any, Call, Call, Order], Any],
    tolerance: float | None,
) -> tuple[Any, FoldReport]:
    """Folds what leaves the outputs as they are.

    All at once: a comparison runs the whole model. If that changes the outputs, halves
    are tried, down to the layers that do.

    Args:
        calls: in order.
        values: the variables of the model, or the model.
        norms: the paths of all batch normalizations, called or not.
        outputs: those of the model, for variables.
        fold_one: (values, norm, layer, order) -> values.
        tolerance: largest accepted `FoldReport.error`; None for one that fits the
            coarsest type in the model.
    """
    first = outputs(values)
    coarse = coarsest([c.output for c in calls] + jax.tree.leaves(first))
    if tolerance is None:
        tolerance = max(1e-4, 4 * float(coarse.eps))
    require_telling(first)
    folded: dict[str, Fold] = {}
    kept: dict[str, str] = {}
    error = 0.0

    def attempt(values: Any, group: list[Call]) -> Any:
        """Folds these at once, or each half apart if that changes the outputs."""
        nonlocal error
        changed, folds, stay, problem = values, {}, {}, ""
        try:
            for norm in group:
                taken = {f.layer for f in (folded | folds).values()}
                partner = _partner(norm, calls, taken)
                if isinstance(partner, str):
                    stay[norm.path] = partner
                    continue
                layer, order = partner
                problem = f"folding into {layer.path}"
                folds[norm.path] = Fold(layer.path, order, not norm.linear)
                changed = fold_one(changed, norm, layer, order)
            difference = difference_of(outputs(changed), first) if folds else error
        # The code of the model is anything, and it ran before.
        except Exception as reason:
            problem += f" fails: {reason}"
        else:
            if difference <= tolerance:
                folded.update(folds)
                kept.update(stay)
                error = difference
                return changed
            problem += (
                f" changes the output by {difference:.1e}, more than {tolerance:.1e}: "
                f"{_cause(difference, group[0], coarse)}"
            )
        if len(group) > 1:
            half = len(group) // 2
            return attempt(attempt(values, group[:half]), group[half:])
        kept[group[0].path] = problem
        return values

    values = attempt(values, [c for c in calls if c.kind == "norm"])
    called = {c.path for c in calls}
    kept.update((path, UNSEEN) for path in norms if path not in called)
    return values, FoldReport(folded, kept, error)


def _cause(difference: float, norm: Call, coarse: Any) -> str:
    """The likely reason for a difference that is too large."""
    if np.isnan(difference):
        return "an output is not a number"
    # Rounding adds up over layers, and where a mean is subtracted from its like.
    if difference <= coarse.eps * max(8, norm.distance):
        return f"likely rounding to {coarse.dtype}, pass a larger `tolerance`"
    return "likely a value between the two is used elsewhere"


def folded_layer(
    own: Arrays, other: Arrays, norm: Call, layer: Call, order: Order
) -> tuple[Any, Any]:
    """Kernel and bias of a layer that takes over a normalization, by their arrays."""
    state = BatchNormState(own["mean"], own["var"], jnp.zeros_like(own["var"]))
    frozen = freeze(state, own.get("scale"), own.get("bias"), epsilon=norm.epsilon)
    return _compiled_fold(
        other["kernel"],
        other.get("bias"),
        frozen,
        order=order,
        axis=layer.axis,
        input_axis=-3 - layer.axis,
        groups=layer.groups,
    )


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
