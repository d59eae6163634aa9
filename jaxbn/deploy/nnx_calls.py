"""Records the layers that a flax.nnx model calls, and their inputs."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.core.activation import function_of
from jaxbn.deploy.calls import STACKED, Call, first_of, pads
from jaxbn.deploy.model import is_norm


def layers_of(model: Any) -> dict[str, Any]:
    """The layers that matter for folding, by path."""
    from flax import nnx

    pairs = nnx.iter_modules(model)
    return {"/".join(map(str, path)): m for path, m in pairs if _kind(m) is not None}


def calls_of(model: Any, example: Any, call: Callable[[Any, Any], Any]) -> list[Call]:
    """The calls in order, in one run of a copy of the model."""
    from flax import nnx

    calls: list[Call] = []
    copy = nnx.clone(model)
    before = nnx.state(nnx.clone(model), nnx.BatchStat)
    for path, layer in layers_of(copy).items():
        layer.path_of_call = path
        layer.__class__ = _listening(type(layer), calls)
    call(copy, example)
    _check_evaluation(before, nnx.state(copy, nnx.BatchStat))
    return calls


def replace(model: Any, path: str, by: Any) -> None:
    """Puts another module in the place of the one at `path`."""
    *keys, last = path.split("/")
    parent = model
    for key in keys:
        parent = _child(parent, key)
    if hasattr(parent, last):
        setattr(parent, last, by)
    else:
        parent[int(last) if last.isdigit() else last] = by


def rest_of(norm: Any, output_type: Any) -> Any:
    """The rest of a folded layer: the residual, the activation, the type."""
    from flax import nnx

    class Rest(nnx.Module):
        def __init__(self):
            self.activation = getattr(norm, "activation", None)
            self.dtype = output_type

        def __call__(self, x: Array, *_, residual: Array | None = None, **__) -> Array:
            y = x if residual is None else x + residual
            function = function_of(self.activation)
            y = y if function is None else function(y)
            return y.astype(self.dtype)

    return Rest()


def _kind(module: Any) -> str | None:
    from flax import nnx

    if is_norm(module):
        return "norm"
    kinds: dict[type, str] = {
        nnx.Linear: "dense",
        nnx.Conv: "conv",
        nnx.ConvTranspose: "transposed",
    }
    return kinds.get(type(module))


def _child(parent: Any, key: str) -> Any:
    if hasattr(parent, key):
        return getattr(parent, key)
    return parent[int(key) if key.isdigit() else key]


def _listening(kind: type, calls: list[Call]) -> type:
    """A subclass that also writes down its calls."""

    def __call__(self, *args, **kwargs):  # noqa: N807
        y = kind.__call__(self, *args, **kwargs)
        if (x := first_of(args, kwargs)) is not None:
            name, extra = _kind_of_base(kind), kwargs.get("residual") is not None
            calls.append(_described(self, name, x, y, extra=extra))
        return y

    return type(kind.__name__, (kind,), {"__call__": __call__})


def _kind_of_base(kind: type) -> str:
    from flax import nnx

    bases = {nnx.Linear: "dense", nnx.Conv: "conv", nnx.ConvTranspose: "transposed"}
    return bases.get(kind, "norm")


def _described(layer: Any, kind: str, x, y, *, extra: bool) -> Call:
    return Call(
        path=layer.path_of_call,
        kind=kind,
        input=x,
        output=y,
        epsilon=getattr(layer, "epsilon", 0.0),
        axis=-2 if getattr(layer, "transpose_kernel", False) else -1,
        groups=getattr(layer, "feature_group_count", 1),
        pads=kind == "conv" and pads(layer.padding),
        has_bias=True,
        linear=getattr(layer, "activation", None) is None and not extra,
        obstacle=_obstacle(layer, kind, jnp.ndim(x)),
    )


def _obstacle(layer: Any, kind: str, rank: int) -> str | None:
    if kind == "norm":
        if layer.mean[...].ndim != 1:
            return STACKED
        last = layer.axis in (-1, rank - 1)
        return None if last else "normalizes another axis than the last"
    space = 0 if kind == "dense" else np.size(layer.kernel_size)
    return None if layer.kernel[...].ndim == space + 2 else STACKED


def _check_evaluation(before: Any, after: Any) -> None:
    import jax

    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if not np.array_equal(a, b):
            raise ValueError(
                "`call` must run the model at evaluation, got a change of its "
                "statistics. Call `model.eval()` first."
            )
