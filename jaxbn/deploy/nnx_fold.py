"""Folds every batch normalization of a flax.nnx model that can be folded."""

from collections.abc import Callable
from typing import Any

from jaxbn.deploy.calls import FoldReport, Order, fold_all, folded_layer
from jaxbn.deploy.compare import example_of, tolerance_of
from jaxbn.deploy.describe import Call
from jaxbn.deploy.model import callable_model, has_mode, run
from jaxbn.deploy.nnx_calls import arrays_of, calls_of, layers_of
from jaxbn.deploy.nnx_model import nnx_module


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
    Layers without bias get one where they need it. The outputs compared are those of
    the model without the layer, so one that the model looks into stays.

    Args:
        model: a nnx module with Linear, Conv or ConvTranspose layers, which itself is
            never changed; at evaluation, see `model.eval()`.
        example: a batch of data to compare on; zeros would hide a difference.
        call: `call(model, batch)` runs the model, and returns numbers that tell
            differences, as logits. Default: `model(batch)`.
        tolerance: largest accepted `FoldReport.error`. Default: 1e-4, or four times the
            machine epsilon of the coarsest type among the outputs and those of the
            layers if that is more: 4e-3 for float16, 0.03 for bfloat16.

    Returns:
        The new model, and the report.

    Raises:
        ValueError: if the model is in training in this call, or the example or the
            outputs are all zero.
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
        {'layers/1': Fold(layer='layers/0', order='after', rest=False)}
    """
    from flax import nnx

    nnx_module(model, "fold_linen")
    callable_model(call)
    tolerance = tolerance_of(tolerance)
    example = example_of(example)
    return fold_all(
        calls_of(model, example, call),
        nnx.clone(model),
        norms=[path for path, layer in layers_of(model).items() if has_mode(layer)],
        outputs=lambda model: call(nnx.clone(model), example),
        fold_one=_folded,
        tolerance=tolerance,
    )


def _folded(model: Any, norm: Call, layer: Call, order: Order) -> Any:
    """A copy of the model without this batch normalization."""
    from flax import nnx

    from jaxbn.deploy.nnx_rest import Rest
    from jaxbn.nnx_models import put

    copy = nnx.clone(model)
    layers = layers_of(copy)
    own, other = layers[norm.path], layers[layer.path]
    kernel, bias = folded_layer(arrays_of(own), arrays_of(other), norm, layer, order)
    other.kernel[...] = kernel
    if other.bias is None:
        other.bias, other.use_bias = nnx.Param(bias.astype(kernel.dtype)), True
    else:
        other.bias[...] = bias
    rest = Rest(getattr(own, "activation", None), norm.output.dtype)
    put({id(own): rest}, copy)
    return copy
