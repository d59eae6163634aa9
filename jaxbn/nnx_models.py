"""Batch normalization in whole models of flax.nnx: exchanged, and started anew."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxbn
from jaxbn.deploy.nnx_model import nnx_module
from jaxbn.nnx_base import COUNTED, Layer
from jaxbn.variants import models

M = TypeVar("M", bound=nnx.Module)
_OURS = "jaxbn.nnx"


def convert(
    model: M,
    *,
    only: str | Callable[[str], bool] | None = None,
    to: type | None = None,
    **options: Any,
) -> M:
    """Makes every `flax.nnx.BatchNorm` of a model one of ours, in place.

    In the place of a layer, or in all places of one that is shared, is one of the class
    `to` with its settings, the options and the same variables: optimizers and
    checkpoints of the model go on. Layers of `jaxbn.nnx` change if `to` or options
    are given. Variables that the new class has beside those of the old one start from
    these: each time step or domain with a copy, `sigma` with sqrt(var + epsilon).

        convert(model, axis_name="data")                # synchronized
        convert(model, frozen=True, only="encoder/.*")  # for fine-tuning

    Args:
        model: any module, or a layer itself; stacked layers (`nnx.vmap`, `nnx.scan`) if
            the stack comes before the features.
        only: the paths of the layers that are meant, of attributes and keys separated
            by "/": a regular expression for the whole path, or a function of it. A
            layer at several places has the first of its paths. Default: all.
        to: a class of layers of `jaxbn.nnx`. Default: BatchNorm; layers of `jaxbn.nnx`
            keep their class.
        options: settings of the layers, for example `axis_name="data"`,
            `update_statistics=False` or `frozen=True`.

    Returns:
        The model, or the new layer where the model is a layer itself.

    Raises:
        TypeError: if `model` is no nnx.Module, `to` no such class, or an option is
            unknown, missing or about variables; or for a layer of a subclass, whose
            code is its own: leave it out with `only`.
        ValueError: if no layer is meant, an option has a wrong value, a layer has
            statistics that `to` cannot start from or that are stacked otherwise, or
            none of the counts that `debias` and `momentum=None` need after training.
            Nothing is changed then.

    Example:
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.relu, nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
        >>> type(jaxbn.nnx.convert(model, momentum=0.9).layers[1])
        <class 'jaxbn.nnx.BatchNorm'>
    """
    nnx_module(model, "jaxbn.linen.converting")
    models.check_target(to, Layer, options)
    found = [
        (path, layer, to or (type(layer) if _is_ours(layer) else jaxbn.nnx.BatchNorm))
        for path, layer in _chosen(model, only)
        if to or options or not _is_ours(layer)
    ]
    # All are made before the first is put in place.
    made: dict[int, Any] = {id(each[1]): _made_of(*each, options) for each in found}
    for new in made.values():
        if "count" in vars(new):
            for variable in _variables(new, nnx.BatchStat).values():
                variable.set_metadata(**{COUNTED: True})
    put(made, model)
    return made.get(id(model), model)


def freeze(
    model: M, *, only: str | Callable[[str], bool] | None = None, affine: bool = True
) -> M:
    """Freezes the batch normalization of a model for fine-tuning, in place.

    Frozen layers normalize with running statistics in training too, as
    `FrozenBatchNorm2d` of torchvision, and never update them. It is
    `convert(model, frozen=True)`; undo it with `convert(model, frozen=False)`.
    `jaxbn.deploy.freeze` is something else: a layer as one affine map.

    Args:
        model, only: as in `convert`.
        affine: whether scale and bias are constants too; an optimizer with weight decay
            needs `jaxbn.optim.frozen_mask` for them.

    Returns:
        The model, or the new layer where the model is a layer itself.

    Raises:
        TypeError, ValueError: as `convert`.

    Example:
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.relu, nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
        >>> jaxbn.nnx.freeze(model).layers[1].frozen
        True
    """
    if not isinstance(affine, bool):
        raise TypeError(
            f"`affine` must be a bool, got {affine!r}. False leaves scale and bias to "
            "the optimizer."
        )
    return convert(model, only=only, frozen=affine or "statistics")


def reset_statistics(model: M, *, only: str | Callable[[str], bool] | None = None) -> M:
    """Puts the running statistics back to those before the first batch, in place.

    Args:
        model: any module, with layers of Flax or of jaxbn.
        only: the paths of the layers that are meant, as in `convert`.

    Returns:
        The model: means and counts are 0, variances 1, in their types.

    Raises:
        TypeError: if `model` is no nnx.Module.
        ValueError: if no layer is meant.

    Example:
        >>> from flax import nnx
        >>> layer = jaxbn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.array([[1.0], [3.0]]))
        >>> jaxbn.nnx.reset_statistics(layer).mean[...]
        Array([0.], dtype=float32)
    """
    nnx_module(model, "jaxbn.linen.reset_statistics")
    for _, layer in _chosen(model, only):
        variables = _variables(layer, nnx.BatchStat)
        values = {name: variable.get_value() for name, variable in variables.items()}
        for name, value in models.reset(values).items():
            variables[name].set_value(value)
    return model


def _chosen(model: nnx.Module, only: Any) -> Iterator[tuple[str, Any]]:
    """The paths and layers that `only` means."""
    is_meant = models.chosen(only)
    pairs = [
        ("/".join(map(str, path)), module)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm | Layer)
    ]
    meant = [pair for pair in pairs if is_meant(pair[0])]
    hint = "Layers in `nnx.bridge.ToNNX` are of linen: see `jaxbn.linen.converting`."
    models.require_some(only, meant, [path for path, _ in pairs], "model", hint)
    yield from meant


def put(made: dict[int, Any], model: Any) -> None:
    """Puts layers into all attributes, and containers there, that have the old ones."""

    def replaced(leaf):
        return made.get(id(leaf), leaf)

    nodes: list[Any] = [node for _, node in nnx.iter_graph(model) if _is_node(node)]
    for node in nodes:
        for name, value in list(vars(node).items()):
            leaves = jax.tree.leaves(value, is_leaf=_is_node)
            if any(id(leaf) in made for leaf in leaves):
                # Not `setattr`, which would ask again if the attribute is data.
                vars(node)[name] = jax.tree.map(replaced, value, is_leaf=_is_node)


def _is_node(value: Any) -> bool:
    return isinstance(value, nnx.Pytree)


def _is_ours(layer: Any) -> bool:
    return isinstance(layer, Layer)


def _variables(layer: Any, kind: type = nnx.Variable) -> dict[str, Any]:
    return {name: v for name, v in vars(layer).items() if isinstance(v, kind)}


def _made_of(path: str, old: Any, kind: Any, options: dict[str, Any]) -> Layer:
    """A layer of this class with the settings and the variables of another."""
    if type(old) is not nnx.BatchNorm and not type(old).__module__.startswith(_OURS):
        raise TypeError(
            f"`only` must leave out subclasses of layers, got {path!r} of "
            f"{type(old).__name__}. What a subclass does would be lost."
        )
    kept, own = _variables(old), models.settings_of(kind, Layer)
    settings = {k: getattr(old, k) for k in own if k in vars(old).keys() - kept.keys()}
    settings |= {"use_scale": old.use_scale, "use_bias": old.use_bias, **options}
    new = kind(old.num_features, **settings, rngs=nnx.Rngs(0))
    fresh = _variables(new)
    rank = np.size(old.num_features)
    each = "mean" not in kept  # with an axis of steps or domains
    shape = kept["mean_of_each" if each else "mean"].shape
    if shape[-rank:] != new._sizes(old.num_features):
        raise ValueError(
            f"`model` must have the features of stacked layers last, got shape {shape} "
            f"of the mean of {path!r} for {old.num_features} features. Stack layers "
            "along the first axis, as `nnx.vmap` does by default."
        )
    stack = shape[: -rank - each]
    shapes = {name: stack + v.get_value().shape for name, v in fresh.items()}
    same = {k for k in fresh if k in kept and kept[k].get_value().shape == shapes[k]}
    same -= options.keys()
    _check_start(path, kept, fresh.keys() - same, averages=new._averages())
    for name, variable in fresh.items():
        if name in same:
            setattr(new, name, kept[name])
            continue
        value = _start(name, kept, new.epsilon)
        if value is None:
            value = variable.get_value()
        else:
            between = (1,) * (len(shapes[name]) - value.ndim)
            value = value.reshape(stack + between + value.shape[-rank:])
        variable.set_value(jnp.broadcast_to(value, shapes[name]))
    return new


def _check_start(path: str, kept: Any, missing: set[str], *, averages: bool) -> None:
    """Refuses statistics that cannot be made of those that there are."""
    if missing and not {"mean", "var"} <= kept.keys():
        raise ValueError(
            f"`to` must keep the statistics of {path!r}, which are "
            f"{', '.join(kept)}, got a layer that needs {', '.join(sorted(missing))}. "
            "Leave it out with `only`."
        )
    if averages and "count" in missing:
        mean, var = (kept[name].get_value() for name in ("mean", "var"))
        models.require_untrained(path, mean, var)


def _start(name: str, kept: dict[str, Any], epsilon: float) -> Any:
    """Returns the start of a new variable, if there is one to derive it from."""
    stem = name.removesuffix("_of_each")
    if stem == "sigma":
        return jnp.sqrt(kept["var"].get_value() + epsilon)
    return kept[stem].get_value() if stem in kept else None
