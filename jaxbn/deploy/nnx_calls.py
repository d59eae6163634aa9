"""Records the layers that a flax.nnx model calls, and their inputs."""

from collections.abc import Callable
from typing import Any

from jaxbn.deploy.describe import Call, Heard, described
from jaxbn.deploy.model import has_mode

_NAMES = ("mean", "var", "scale", "bias", "kernel")


def layers_of(model: Any) -> dict[str, Any]:
    """The layers that matter for folding, by path."""
    from flax import nnx

    pairs = nnx.iter_modules(model)
    return {"/".join(map(str, path)): m for path, m in pairs if _kind(type(m), m)}


def arrays_of(layer: Any) -> dict[str, Any]:
    """The variables of a layer by name."""
    found = {name: getattr(layer, name, None) for name in _NAMES}
    return {name: v[...] for name, v in found.items() if v is not None}


def calls_of(model: Any, example: Any, call: Callable[[Any, Any], Any]) -> list[Call]:
    """The calls in order, in one run of a copy of the model."""
    from flax import nnx

    calls: list[Call] = []
    copy = nnx.clone(model)
    # As they are outside of transformations, whether or not these slice them.
    arrays = {path: arrays_of(layer) for path, layer in layers_of(copy).items()}
    for path, layer in layers_of(copy).items():
        layer.path_of_call = path
        layer.__class__ = _listening(type(layer), calls, arrays)
    call(copy, example)
    return calls


def _kind(of: type, module: Any) -> str | None:
    from flax import nnx

    if has_mode(module):
        return "norm"
    kinds: dict[type, str] = {
        nnx.Linear: "dense",
        nnx.Conv: "conv",
        nnx.ConvTranspose: "transposed",
    }
    return kinds.get(of)


def _listening(of: type, calls: list[Call], arrays: dict[str, Any]) -> type:
    """A subclass that also writes down its calls."""

    def __call__(self, *args, **kwargs):  # noqa: N807
        y = of.__call__(self, *args, **kwargs)
        heard, path = Heard(args, kwargs, y), self.path_of_call
        kind = _kind(of, self)
        if kind and heard.input is not None:
            given = {"of": of, "arrays": arrays[path], "has_bias": True}
            calls.append(described(path, kind, self, heard, **given))
        return y

    return type(of.__name__, (of,), {"__call__": __call__})
