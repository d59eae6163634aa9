"""Folds every batch normalization of a flax.linen model that can be folded."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn.core import trees
from jaxbn.core.values import shown
from jaxbn.deploy.calls import FoldReport, Order, fold_all, folded_layer
from jaxbn.deploy.compare import example_of, tolerance_of
from jaxbn.deploy.describe import Call
from jaxbn.deploy.linen_calls import calls_of, norms_of
from jaxbn.deploy.linen_model import boxed_as, linen_module, require_variables, unboxed
from jaxbn.deploy.model import callable_model, run


def fold_linen(
    module: Any,
    variables: Mapping[str, Any],
    example: Any,
    *,
    call: Callable[[Any, Any], Any] = run,
    tolerance: float | None = None,
) -> tuple[dict[str, Any], FoldReport]:
    """Folds batch normalization into the layers around it, for the same model.

    Runs the model once to see which layer's output each batch normalization takes, and
    which layer takes its output. It folds them and compares the outputs on `example`
    with the original ones. If they differ, a value was used elsewhere too: it tries
    each half of the layers, down to those that make the difference. Layers stay, with
    the reason in the report, if it is not known that they are an affine map with stored
    statistics: other classes than BatchNorm and GhostBatchNorm, subclasses with another
    `__call__`, calls with `scale` or `bias`, and layers that normalize with the
    statistics of the batch and never update.

    A folded layer becomes the identity, apart from a bias that the layer before it has
    no variable for, so the model runs as before. `strip_linen` removes it altogether.
    A normalization before a layer without bias stays: the module would not read a new
    variable. `fold_nnx` adds one.

    Args:
        module: a linen module with Dense, Conv or ConvTranspose layers.
        variables: its variables, with "params" and "batch_stats"; boxes, as
            `nn.Partitioned`, stay around them.
        example: a batch of data to compare on; zeros would hide a difference.
        call: `call(module, batch)` runs the model at evaluation, and returns numbers
            that tell differences, as logits. Default: `module(batch)`.
        tolerance: largest accepted `FoldReport.error`. Default: 1e-4, or four times the
            machine epsilon of the coarsest type among the outputs and those of the
            layers if that is more: 4e-3 for float16, 0.03 for bfloat16.

    Returns:
        New variables, and the report.

    Raises:
        TypeError: if `module` is no linen module, `variables` no dictionary, `call` no
            function, `tolerance` no number, or `example` no tree of arrays.
        ValueError: if the model is in training in this call, `variables` have no
            collections, or the example or the outputs are all zero.

    Example:
        >>> import flax.linen as nn
        >>> norm = nn.BatchNorm(use_running_average=True)
        >>> net, x = nn.Sequential([nn.Dense(3), norm]), jnp.ones((2, 4))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> variables, report = jaxbn.deploy.fold_linen(net, variables, x)
        >>> report.folded
        {'layers_1': Fold(layer='layers_0', order='after', rest=False)}
    """
    linen_module(module, variables, "fold_nnx")
    callable_model(call)
    tolerance = tolerance_of(tolerance)
    if not variables.keys() & {"params", "batch_stats"}:
        raise ValueError(
            "`variables` must have the collections 'params' and 'batch_stats', got "
            f"{list(variables)}. Pass what `module.init` returns."
        )
    trees.of_arrays("variables", variables)
    example = example_of(example)
    plain = unboxed(variables)
    calls = calls_of(module, plain, example, call)
    outputs = jax.jit(lambda values: module.apply(values, example, method=call))
    values, report = fold_all(
        calls,
        plain,
        norms=norms_of(plain),
        outputs=outputs,
        fold_one=_folded,
        tolerance=tolerance,
    )
    boxes, new = _flat(variables), _flat(values)
    for key, box in boxes.items():
        if key in new:
            new[key] = boxed_as(box, new[key])
    return _nested(new) if report.folded else dict(variables), report


def strip_linen(variables: Mapping[str, Any], report: FoldReport) -> dict[str, Any]:
    """Removes folded batch normalizations from the variables.

    The result is for a model without them, whose layers in `report.folded` have a bias.
    Activations and residuals must stand in the module, and not in the layers removed.

    Args:
        variables: from `fold_linen`.
        report: from the same call.

    Returns:
        Variables without the folded layers.

    Raises:
        TypeError: if `variables` are no dictionary, or `report` no FoldReport.
        ValueError: if a layer of the report is not there or not folded, or has an
            activation or a residual of its own, which would be lost.

    Example:
        >>> import flax.linen as nn
        >>> norm = nn.BatchNorm(use_running_average=True)
        >>> net, x = nn.Sequential([nn.Dense(3), norm]), jnp.ones((2, 4))
        >>> variables = net.init(jax.random.key(0), x)
        >>> variables, report = jaxbn.deploy.fold_linen(net, variables, x)
        >>> sorted(jaxbn.deploy.strip_linen(variables, report)["params"])
        ['layers_0']
    """
    require_variables(variables)
    if not isinstance(report, FoldReport):
        raise TypeError(
            f"`report` must be a FoldReport, got {shown(report)}. Pass both results of "
            "`fold_linen`."
        )
    if more := [path for path, fold_ in report.folded.items() if fold_.rest]:
        raise ValueError(
            "`report` must have no layers with an activation or a residual, got "
            f"{more}, which would lose it. Apply it in the module, after the layer, "
            "and fold again."
        )
    flat, plain = _flat(variables), _flat(unboxed(variables))
    for path, fold_ in report.folded.items():
        key = tuple(filter(None, path.split("/")))
        own = {old[-1]: value for old, value in plain.items() if old[1:-1] == key}
        name = ("params", *fold_.layer.split("/"), "bias")
        if not _is_folded(own, has_shift=name not in flat):
            raise ValueError(
                f"`variables` must be those that `report` is of, got {path!r} that is "
                "missing or not folded. Pass both results of `fold_linen`."
            )
        if name not in flat:
            flat[name] = -own["mean"]
        for old in [k for k in flat if k[1:-1] == key]:
            del flat[old]
    return _nested(flat)


def _is_folded(own: Mapping[str, Any], *, has_shift: bool) -> bool:
    """Tells whether a layer is the identity, apart from a shift; epsilon is unknown."""
    if "mean" not in own:
        return False
    var = own["var"]
    one = (own.get("scale", 1) == 1) & (var == var[0]) & (var <= 1)
    zero = (own.get("bias", 0) == 0) & (has_shift | (own["mean"] == 0))
    return bool(jnp.all(one & zero))


def _folded(variables, norm: Call, layer: Call, order: Order) -> dict[str, Any]:
    flat = _flat(variables)
    keys = [
        {key[-1]: key for key in flat if _is_of(call, key)} for call in (norm, layer)
    ]
    own, other = ({name: flat[key] for name, key in names.items()} for names in keys)
    mean, var = own["mean"], own["var"]
    kernel, bias = folded_layer(own, other, norm, layer, order)
    # The identity, apart from a bias that the other layer has no variable for.
    new = {
        "mean": jnp.zeros_like(mean) if "bias" in other else -bias.astype(mean.dtype),
        "var": jnp.ones_like(var) - norm.epsilon,
        "scale": jnp.ones_like(own.get("scale", var)),
        "bias": jnp.zeros_like(own.get("bias", var)),
    }
    for names, changed in zip(
        keys, (new, {"kernel": kernel, "bias": bias}), strict=True
    ):
        flat |= {key: changed[k] for k, key in names.items() if k in changed}
    return _nested(flat)


def _is_of(call: Call, key: tuple[str, ...]) -> bool:
    path = tuple(filter(None, call.path.split("/")))
    return key[0] in ("params", "batch_stats") and key[1:-1] == path


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
