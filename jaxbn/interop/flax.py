"""Settings that layers of linen and of nnx share, of Flax or of jaxbn."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxbn.core.values import shown
from jaxbn.interop import arguments
from jaxbn.interop.layer import Layer, read


def plain(name: str, module: Any, *packages: str) -> None:
    """Refuses modules that do other than, or more than, a Layer does."""
    if not arguments.is_a(module, "BatchNorm", *packages):
        raise TypeError(
            f"`{name}` must be a `BatchNorm` of {' or '.join(packages)}, got "
            f"{shown(module)}. Pass that part of a model."
        )
    activation = getattr(module, "activation", None)
    if activation is not None:
        raise ValueError(
            f"`{name}` must have no `activation`, got {activation!r}. A Layer has "
            "none: create it without, and apply it after the layer."
        )
    axis = axis_of(module)
    if isinstance(axis, Iterable):
        raise ValueError(
            f"`{name}` must have one feature axis, got axis={axis!r}. Other frameworks "
            "have no layer for several."
        )


def axis_of(module: Any) -> Any:
    """The feature axis as an integer, if there is one."""
    axis = module.axis
    if isinstance(axis, Iterable):
        several = tuple(axis)
        return several[0] if len(several) == 1 else several
    return axis


def layer_of(module: Any, labels: Mapping[str, str], found: Mapping[str, Any]) -> Layer:
    """A layer of the arrays and the settings of a module."""
    names = ("mean", "var", "count", "scale", "bias")
    return read(
        {labels.get(name, name): found.get(name) for name in names},
        momentum=module.momentum,
        epsilon=module.epsilon,
        axis=axis_of(module),
        unbiased=getattr(module, "unbiased", False),
        debias=getattr(module, "debias", False),
    )
