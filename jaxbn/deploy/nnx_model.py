"""The running statistics of a whole flax.nnx model."""

import functools
from collections.abc import Callable
from typing import Any

from jaxbn.core.moments import merge
from jaxbn.core.types import BatchNormState, Moments
from jaxbn.deploy.model import (
    Model,
    callable_model,
    count_of,
    is_norm,
    moments_of_call,
    no_values,
    over_members,
    require_some,
    run,
    written,
)


def nnx_model(model: Any, *, call: Callable[[Any, Any], Any] = run) -> Model:
    """The statistics of a `flax.nnx` model, which itself is never changed.

    Args:
        model: any nnx module.
        call: `call(model, batch)` runs the model; whether layers normalize with batch
            or running statistics is decided here. Default: `model(batch)`.

    Returns:
        A Model; its `replace` returns a new nnx module, and its `collect` raises
        ValueError if a layer is not called, or in a transformation, as `nnx.scan`, that
        drops changes of its `nnx.BatchStat` variables.

    Raises:
        TypeError: if `model` is no nnx.Module, or `call` no function.
        ValueError: if `model` contains no batch normalization.

    Example:
        >>> from flax import nnx
        >>> norm = nnx.BatchNorm(1, use_running_average=True, rngs=nnx.Rngs(0))
        >>> model, x = nnx_model(norm), jnp.array([[1.0], [3.0]])
        >>> states = jaxbn.deploy.recalibrate(model.collect, model.states, [x])
        >>> model.replace(states).mean[...]
        Array([2.], dtype=float32)
    """
    from flax import nnx

    nnx_module(model, "linen_model")
    callable_model(call)

    def norms(root):
        pairs = nnx.iter_modules(root)
        return {"/".join(map(str, p)): norm for p, norm in pairs if is_norm(norm)}

    def fresh(states):
        copy = nnx.clone(model)
        for path, norm in norms(copy).items():
            _write_nnx(norm, states[path])
        return copy

    def collect(states, batch):
        copy = fresh(states)
        layers: dict[str, Any] = norms(copy)
        empty = {path: no_values(states[path]) for path in layers}
        for path, norm in layers.items():
            norm.__class__ = _recording(type(norm))
            # Transformations treat it as the statistics, whose axes are the same.
            norm.recorded = nnx.BatchStat(empty[path])
        call(copy, batch)
        seen = {path: norm.recorded.get_value() for path, norm in layers.items()}
        _require_all(empty, seen)
        return seen

    states = {path: _read_nnx(norm) for path, norm in norms(model).items()}
    require_some(states, "model")
    return Model(states, collect, fresh)


def nnx_module(model: Any, other: str) -> None:
    """Refuses what is no nnx module; `other` is for linen."""
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be an nnx.Module, got {type(model).__name__}. For a linen "
            f"module use `{other}`."
        )


@functools.cache
def _recording(kind: type) -> type:
    """A subclass that also records the moments of what it is called on."""

    def __call__(self, x, *args, **kwargs):  # noqa: N807
        seen = moments_of_call(self, x, *args, **kwargs)
        seen = over_members(seen, self.mean[...])
        self.recorded.set_value(merge(self.recorded.get_value(), seen))
        return kind.__call__(self, x, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__})


def _require_all(empty: dict[str, Moments], seen: dict[str, Moments]) -> None:
    """Values may be traced, but what nobody wrote is still the same object."""
    if missing := [p for p, old in empty.items() if seen[p].count is old.count]:
        raise ValueError(
            f"`call` must call every batch normalization, got no call of {missing}. "
            "Run the whole model, or hand over the part. In `nnx.scan`, `nnx.vmap` and "
            "the like, give `nnx.BatchStat` an axis or carry it."
        )


def _read_nnx(norm) -> BatchNormState:
    tree = {
        key: variable[...]
        for key in ("mean", "var", "count")
        if (variable := getattr(norm, key, None)) is not None
    }
    return BatchNormState(tree["mean"], tree["var"], count_of(tree, tree["var"]))


def _write_nnx(norm, state: BatchNormState) -> None:
    for key, new in state._asdict().items():
        if (variable := getattr(norm, key, None)) is not None:
            variable[...] = written(variable[...], new)
