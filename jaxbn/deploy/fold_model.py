"""Folds every batch normalization of a flax.linen model that can be folded."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn.core.types import BatchNormState
from jaxbn.deploy.fold import fold
from jaxbn.deploy.freeze import freeze
from jaxbn.deploy.linen_calls import Call, calls_of
from jaxbn.deploy.model import run

_compiled_fold = jax.jit(
    fold, static_argnames=("order", "axis", "input_axis", "groups")
)


class Fold(NamedTuple):
    """One layer that took over a batch normalization."""

    layer: str
    order: Literal["after", "before"]


class FoldReport(NamedTuple):
    """What `fold_linen` did.

    Attributes:
        folded: the layer each batch normalization went into, by path.
        kept: the reason for each one that stays, by path.
        error: largest absolute difference between the outputs of the two models on
            the example, divided by the largest absolute output or one.
    """

    folded: dict[str, Fold]
    kept: dict[str, str]
    error: float


def fold_linen(
    module: Any,
    variables: Mapping[str, Any],
    example: Any,
    *,
    call: Callable[[Any, Any], Any] = run,
    tolerance: float = 1e-4,
) -> tuple[dict[str, Any], FoldReport]:
    """Folds batch normalization into the layers around it, for the same model.

    Runs the model once to see which layer's output each batch normalization takes, and
    which layer takes its output. After each fold it compares the outputs on `example`
    with the original ones, and undoes the fold if they differ: then the value was used
    elsewhere too.

    A folded layer becomes the identity, apart from a bias that the layer before it has
    no variable for, so the model runs as before. `strip_linen` removes it altogether.

    Args:
        module: a linen module with Dense, Conv or ConvTranspose layers.
        variables: its variables, with "params" and "batch_stats".
        example: a batch to compare on.
        call: `call(module, batch)` runs the model at evaluation. Default:
            `module(batch)`.
        tolerance: largest accepted `FoldReport.error`.

    Returns:
        New variables, and the report.

    Raises:
        ValueError: if the model normalizes with batch statistics in this call.

    Example:
        >>> import flax.linen as nn
        >>> norm = nn.BatchNorm(use_running_average=True)
        >>> net, x = nn.Sequential([nn.Dense(3), norm]), jnp.ones((2, 4))
        >>> variables, report = jaxbn.deploy.fold_linen(
        ...     net, net.init(jax.random.key(0), x), x
        ... )
        >>> report.folded
        {'layers_1': Fold(layer='layers_0', order='after')}
    """
    calls = calls_of(module, variables, example, call)
    outputs = jax.jit(lambda values: module.apply(values, example, method=call))
    want = _vector(outputs(dict(variables)))
    size = max(1.0, float(np.abs(want).max(initial=0)))
    folded, kept, error = {}, {}, 0.0
    for norm in (c for c in calls if c.kind == "norm"):
        found = _partner(norm, calls, taken={f.layer for f in folded.values()})
        if isinstance(found, str):
            kept[norm.path] = found
            continue
        layer, order = found
        changed = _folded(variables, norm, layer, order)
        got = _vector(outputs(changed))
        difference = float(np.abs(got - want).max(initial=0)) / size
        if not difference <= tolerance:
            kept[norm.path] = (
                f"folding into {layer.path} changes the output by {difference:.1e}: "
                "a value between the two is used elsewhere"
            )
            continue
        variables, error = changed, difference
        folded[norm.path] = Fold(layer.path, order)
    return dict(variables), FoldReport(folded, kept, error)


def strip_linen(variables: Mapping[str, Any], report: FoldReport) -> dict[str, Any]:
    """Removes folded batch normalizations from the variables.

    The result is for a model without them, whose layers in `report.folded` have a bias.

    Args:
        variables: from `fold_linen`.
        report: from the same call.

    Returns:
        Variables without the folded layers.
    """
    flat = _flat(variables)
    for path, fold_ in report.folded.items():
        key = tuple(filter(None, path.split("/")))
        left = -flat["batch_stats", *key, "mean"]
        name = ("params", *fold_.layer.split("/"), "bias")
        if fold_.order == "after" and name not in flat:
            flat[name] = left
        for old in [k for k in flat if k[1:-1] == key]:
            del flat[old]
    return _nested(flat)


def _partner(norm: Call, calls: list[Call], taken) -> tuple[Call, Any] | str:
    """The layer to fold into and the order, or why there is none."""
    if sum(c.path == norm.path for c in calls) > 1:
        return "it is called more than once"
    if norm.obstacle:
        return norm.obstacle
    layers = [c for c in calls if c.kind != "norm"]
    before = [c for c in layers if c.output is norm.input]
    after = [c for c in layers if c.input is norm.output and norm.linear]
    reason = "its input is not the output of a dense or convolution layer"
    for layer, order in [
        *((c, "after") for c in before),
        *((c, "before") for c in after),
    ]:
        if obstacle := _obstacle(layer, order, calls, taken):
            reason = f"{layer.path} {obstacle}"
        else:
            return layer, order
    return reason


def _obstacle(layer: Call, order: str, calls: list[Call], taken) -> str | None:
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


def _folded(variables, norm: Call, layer: Call, order):
    flat = _flat(variables)
    own, other = (tuple(filter(None, c.path.split("/"))) for c in (norm, layer))
    mean = ("batch_stats", *own, "mean")
    var = ("batch_stats", *own, "var")
    scale, shift = ("params", *own, "scale"), ("params", *own, "bias")
    kernel, bias = ("params", *other, "kernel"), ("params", *other, "bias")
    state = BatchNormState(flat[mean], flat[var], jnp.zeros_like(flat[var]))
    frozen = freeze(state, flat.get(scale), flat.get(shift), epsilon=norm.epsilon)
    flat[kernel], new = _compiled_fold(
        flat[kernel],
        flat.get(bias),
        frozen,
        order=order,
        axis=layer.axis,
        input_axis=-3 - layer.axis,
        groups=layer.groups,
    )
    kept = jnp.zeros_like(flat[mean])
    if bias in flat:
        flat[bias] = new
    else:
        kept = -new.astype(kept.dtype)
    one = jnp.ones_like(flat[var])
    flat[mean], flat[var] = kept, one - norm.epsilon
    if scale in flat:
        flat[scale] = jnp.ones_like(flat[scale])
    if shift in flat:
        flat[shift] = jnp.zeros_like(flat[shift])
    return _nested(flat)


def _vector(outputs) -> np.ndarray:
    leaves = [np.ravel(np.asarray(v, np.float64)) for v in jax.tree.leaves(outputs)]
    return np.concatenate(leaves)


def _flat(tree, path=()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key in tree for k, v in _flat(tree[key], (*path, key)).items()}


def _nested(flat) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
