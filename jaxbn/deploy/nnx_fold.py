"""Folds every batch normalization of a flax.nnx model that can be folded."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn.core import trees
from jaxbn.deploy.calls import (
    Call,
    FoldReport,
    Order,
    fold_all,
    fold_arrays,
    tolerance_of,
)
from jaxbn.deploy.model import callable_model, is_norm, run
from jaxbn.deploy.nnx_calls import calls_of, layers_of, replace, rest_of
from jaxbn.deploy.nnx_model import nnx_module

_NAMES = ("mean", "var", "scale", "bias", "kernel")


def fold_nnx(
    model: Any,
    example: Any,
    *,
    call: Callable[[Any, Any], Any] = run,
    tolerance: float | None = None,
) -> tuple[Any, FoldReport]:
    """Folds batch normalization into the layers around it, in a copy of the model.

    As `jaxbn.deploy.fold_linen`, but the folded layers are gone: in their place is a
    module that adds the residual and applies the activation, if the layer had them.
    Layers without bias get one where they need it.

    Args:
        model: a nnx module with Linear, Conv or ConvTranspose layers, which itself is
            never changed; at evaluation, see `model.eval()`.
        example: a batch to compare on.
        call: `call(model, batch)` runs the model. Default: `model(batch)`.
        tolerance: largest accepted `FoldReport.error`. Default: 1e-4, or four times the
            machine epsilon of the coarsest type among the outputs and those of the
            layers if that is more: 4e-3 for float16, 0.03 for bfloat16.

    Returns:
        The new model, and the report.

    Raises:
        ValueError: if the model normalizes with batch statistics in this call.
        TypeError: if `model` is no nnx.Module, `call` no function, `tolerance` no
            number, or `example` no tree of arrays.

    Example:
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> dense, norm = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        >>> net = nnx.Sequential(dense, norm)
        >>> net.eval()
        >>> folded, report = jaxbn.deploy.fold_nnx(net, jnp.ones((2, 4)))
        >>> report.folded
        {'layers/1': Fold(layer='layers/0', order='after')}
    """
    from flax import nnx

    nnx_module(model, "fold_linen")
    callable_model(call)
    tolerance = tolerance_of(tolerance)
    example = trees.of_arrays("example", example)
    calls = calls_of(model, example, call)
    copy = _with_biases(nnx.clone(model))
    graph, state = nnx.split(copy)

    @jax.jit
    def outputs(state, values):
        used = nnx.merge(graph, state)
        _write(used, values)
        return call(used, example)

    values, report = fold_all(
        calls,
        _read(copy),
        norms=[path for path, layer in layers_of(model).items() if is_norm(layer)],
        outputs=functools.partial(outputs, state),
        fold_one=_folded,
        tolerance=tolerance,
    )
    _write(copy, values)
    _without_needless_biases(copy, model, report)
    types = {c.path: c.output.dtype for c in calls}
    old = layers_of(copy)
    for path in report.folded:
        replace(copy, path, rest_of(old[path], types[path]))
    return copy, report


def _read(model: Any) -> dict[str, dict[str, Any]]:
    """The arrays of each layer, by path and name."""
    return {
        path: {
            name: variable[...]
            for name in _NAMES
            if (variable := getattr(layer, name, None)) is not None
        }
        for path, layer in layers_of(model).items()
    }


def _write(model: Any, values: dict[str, dict[str, Any]]) -> None:
    for path, layer in layers_of(model).items():
        for name, value in values[path].items():
            getattr(layer, name)[...] = value


def _folded(values, norm: Call, layer: Call, order: Order) -> dict[str, Any]:
    own, other = values[norm.path], values[layer.path]
    own, other = fold_arrays(own, other, norm, layer, order)
    return {**values, norm.path: own, layer.path: other}


def _with_biases(model: Any) -> Any:
    """Zeros for every layer without a bias."""
    from flax import nnx

    for layer in layers_of(model).values():
        if hasattr(layer, "kernel") and layer.bias is None:
            kernel = layer.kernel[...]
            axis = -2 if getattr(layer, "transpose_kernel", False) else -1
            layer.bias = nnx.Param(jnp.zeros(kernel.shape[axis], kernel.dtype))
            layer.use_bias = True
    return model


def _without_needless_biases(model: Any, original: Any, report: FoldReport) -> None:
    from flax import nnx

    took = {fold.layer for fold in report.folded.values()}
    before = layers_of(original)
    for path, layer in layers_of(model).items():
        if hasattr(layer, "kernel") and before[path].bias is None and path not in took:
            layer.bias, layer.use_bias = nnx.data(None), False
