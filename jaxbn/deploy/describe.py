"""Describes one call of a layer, and what stands in the way of folding it."""

from collections.abc import Mapping, Sequence
from inspect import isfunction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

STACKED = "has stacked variables, from a lifted transformation"

# Kinds whose evaluation is an affine map with the running statistics, and the arguments
# of a call that leave it one.
_AFFINE = ("BatchNorm", "GhostBatchNorm")
_HARMLESS = {"x", "use_running_average", "mask", "weights", "residual"}


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
        distance: of a batch normalization, the largest mean in standard deviations.
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
    distance: float
    obstacle: str | None


class Heard(NamedTuple):
    """The arguments and the output of one call of a layer."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def input(self) -> Any:
        """The input, by position or a name that Flax gives it, or None."""
        by_name = self.kwargs.get("x", self.kwargs.get("inputs"))
        return self.args[0] if self.args else by_name


def described(
    path: str,
    kind: str,
    layer: Any,
    heard: Heard,
    *,
    of: type,
    arrays: Mapping[str, Any],
    has_bias: bool,
) -> Call:
    """Describes a call.

    Args:
        path, kind, has_bias: as in Call.
        layer: the module, with the settings that it has in the call.
        heard: the call.
        of: the class of the layer.
        arrays: its variables by name, as they are outside of transformations.

    Raises:
        ValueError: if it is a call in training.
    """
    distance = 0.0
    if kind == "norm":
        obstacle = _not_affine(of, layer, path, heard) or _not_last(
            arrays["mean"], layer.axis, jnp.ndim(heard.input)
        )
        if obstacle is None:
            mean, var = (np.abs(np.asarray(arrays[k])) for k in ("mean", "var"))
            distance = float((mean / np.sqrt(var + layer.epsilon)).max(initial=0))
    else:
        space = 0 if kind == "dense" else np.size(layer.kernel_size)
        obstacle = None if arrays["kernel"].ndim == space + 2 else STACKED
    has_rest = heard.kwargs.get("residual") is not None
    return Call(
        path=path,
        kind=kind,
        input=heard.input,
        output=heard.output,
        epsilon=getattr(layer, "epsilon", 0.0),
        axis=-2 if getattr(layer, "transpose_kernel", False) else -1,
        groups=getattr(layer, "feature_group_count", 1),
        pads=kind == "conv" and pads(layer.padding, layer.kernel_size),
        has_bias=has_bias,
        linear=getattr(layer, "activation", None) is None and not has_rest,
        distance=distance,
        obstacle=obstacle,
    )


def pads(padding: Any, kernel_size: Any) -> bool:
    """Tells whether a Flax `padding` adds zeros."""
    if isinstance(padding, str):
        copies = padding.upper() in ("VALID", "CIRCULAR", "REFLECT")
        return not copies and bool(np.any(np.asarray(kernel_size) > 1))
    each = padding if isinstance(padding, Sequence) else [padding]
    return any(np.any(np.asarray(p) != 0) for p in each)


def _not_affine(of: type, norm: Any, path: str, heard: Heard) -> str | None:
    """The reason why a call is no affine map with stored statistics, or None."""
    known = next((c for c in of.__mro__ if _is_known(c)), None)
    if known is None:
        return f"its class is {of.__name__}, not BatchNorm itself"
    if changed := _overridden(of, known):
        return f"its class {of.__name__} has another {', '.join(changed)}"
    given = {name for name, value in heard.kwargs.items() if value is not None}
    if given - _HARMLESS:
        return f"it is called with {', '.join(sorted(given - _HARMLESS))}"
    by_name = heard.kwargs.get("use_running_average")
    mode = heard.args[1] if len(heard.args) > 1 else by_name
    mode = norm.use_running_average if mode is None else mode
    if mode or getattr(norm, "frozen", False):
        return None
    if getattr(norm, "update_statistics", True):
        raise ValueError(
            f"`call` must run the model at evaluation, got training of {path!r}. Call "
            "`model.eval()` first, or pass `use_running_average=True`."
        )
    return "it normalizes with the statistics of the batch"


def _is_known(of: type) -> bool:
    return of.__module__.split(".")[0] in ("flax", "jaxbn") and of.__name__ in _AFFINE


def _overridden(of: type, known: type) -> list[str]:
    """The methods of a class that a subclass has its own of; it may do anything."""
    classes = of.__mro__[: of.__mro__.index(known)]
    own = {name for c in classes for name, v in vars(c).items() if isfunction(v)}
    methods = {name for name in dir(known) if name == "__call__" or name[:2] != "__"}
    return sorted(own & methods)


def _not_last(mean: Any, axis: Any, rank: int) -> str | None:
    if mean.ndim != 1:
        return STACKED
    return None if axis in (-1, rank - 1) else "normalizes another axis than the last"
