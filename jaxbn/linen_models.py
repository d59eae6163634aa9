"""Batch normalization in whole models of flax.linen: exchanged, and started anew."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from flax import linen as nn
from jax.experimental.xla_metadata import set_xla_metadata

import jaxbn
from jaxbn.deploy.linen_model import require_variables
from jaxbn.linen_base import Layer
from jaxbn.variants import models

_replaced: ContextVar[tuple] = ContextVar("replaced", default=())
"""The scopes of the layers that another one runs in the place of."""
_count = itertools.count()
_PLACES = ("flax.linen", "jaxbn.linen")
_PLAIN = {nn.BatchNorm.__call__, Layer.__call__}
"""The calls without code of a subclass or a transformation around them."""


class _Context(NamedTuple):
    """The arguments of one `converting`, and the paths of calls in it."""

    number: int
    is_meant: Callable[[str], Any]
    to: type | None
    options: Mapping[str, Any]
    seen: list[str]
    meant: list[str]

    def means(self, module: Any, path: str) -> bool:
        """Tells whether another layer runs in the place of a module."""
        changed = (nn.BatchNorm, Layer) if self.to or self.options else nn.BatchNorm
        if not isinstance(module, changed):
            return False
        self.seen.append(path)
        if not self.is_meant(path):
            return False
        self.meant.append(path)
        keeps_class = isinstance(module, Layer) and self.to is None
        if not keeps_class and not type(module).__module__.startswith(_PLACES):
            raise TypeError(
                f"`only` must leave out subclasses of layers, got {path!r} of "
                f"{type(module).__name__}. What a subclass does would be lost."
            )
        return True


_open: ContextVar[tuple[_Context, ...]] = ContextVar("open", default=())
"""The contexts around here, the inner one first."""


@contextlib.contextmanager
def converting(
    *,
    only: str | Callable[[str], bool] | None = None,
    to: type | None = None,
    **options: Any,
) -> Iterator[None]:
    """Runs our layers in the place of those of Flax, in models that stay as they are.

    In this context every call of a `flax.linen.BatchNorm` is one of the class `to` with
    the settings of the module and the options, in `init` and `apply` and in lifted
    transformations. Variables have the names, shapes and types of Flax, unless the
    class or an option (`debias`, `momentum=None`) has more of them. Layers of
    `jaxbn.linen` get the options too. Of nested contexts the inner one decides about
    the layers that it means.

    A function that is under `jax.jit` or `nn.jit` is traced anew in the context, also
    if it ran before: the context is part of what JAX compiles for, by an attribute of
    the operations that no compiler reads. That holds for equal arguments only once, so
    pass the same function as `only` each time, and numbers instead of arrays. What was
    compiled by hand, with `lower` and `compile`, is what it was.

    Interceptors around this context (`nn.intercept_methods`) hear each call once, with
    the module of the model; those inside hear the layer in its place.

    Args:
        only: the paths of the layers that are meant, as in
            `variables["batch_stats"]` and separated by "/": a regular expression for
            the whole path, or a function of it. Default: all.
        to: a class of layers of `jaxbn.linen`. Default: BatchNorm; layers of
            `jaxbn.linen` keep their class.
        options: settings of the layers, for example `axis_name="data"`,
            `update_statistics=False` or `frozen=True`.

    Raises:
        TypeError: if `to` is no such class, or an option is unknown, missing or about
            variables; in a call of a subclass of Flax's layer, whose code is its own:
            leave it out with `only`.
        ValueError: if an option has a wrong value, or layers were called and `only`
            means none of them.

    Example:
        >>> import flax.linen as nn
        >>> model, x = nn.Sequential([nn.BatchNorm(False)]), jnp.array([[1.0], [3.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> with jaxbn.linen.converting(momentum=0.5):
        ...     y, new = model.apply(variables, x, mutable=["batch_stats"])
        >>> new["batch_stats"]["layers_0"]["mean"]
        Array([1.], dtype=float32)
    """
    models.check_target(to, Layer, options)
    number = _number_of(only, to, options)
    context = _Context(number, models.chosen(only), to, options, [], [])
    token = _open.set((context, *_open.get()))
    try:
        key = str([each.number for each in _open.get()])
        replace = functools.partial(_replace, context)
        with set_xla_metadata(jaxbn_converting=key), nn.intercept_methods(replace):
            yield
    finally:
        _open.reset(token)
    if context.seen:
        models.require_some(only, context.meant, context.seen, "model")


def reset_statistics(
    variables: Mapping[str, Any], *, only: str | Callable[[str], bool] | None = None
) -> dict[str, Any]:
    """Puts the running statistics back to those before the first batch.

    Args:
        variables: of a model, with the collection "batch_stats".
        only: the paths of the layers that are meant, as in `converting`.

    Returns:
        New variables: means and counts are 0, variances 1, in their types.

    Raises:
        TypeError: if `variables` is no dictionary of collections.
        ValueError: if there is no such layer.

    Example:
        >>> layer = jaxbn.linen.BatchNorm(use_running_average=False)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> _, new = layer.apply(layer.init(jax.random.key(0), x), x, mutable=True)
        >>> jaxbn.linen.reset_statistics(new)["batch_stats"]["mean"]
        Array([0.], dtype=float32)
    """
    require_variables(variables)
    is_meant, seen, meant = models.chosen(only), [], []

    def write(tree: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if not models.is_layer(tree):
            return {key: write(value, (*path, key)) for key, value in tree.items()}
        seen.append("/".join(path))
        if not is_meant(seen[-1]):
            return tree
        meant.append(seen[-1])
        return models.reset(tree)

    statistics = write(variables.get("batch_stats", {}), ())
    models.require_some(only, meant, seen, "variables")
    return {**variables, "batch_stats": statistics}


def standing_in(module: Any) -> Any:
    """The layer that runs in the place of a module that is called here, or itself."""
    scope = module.scope
    if any(other is scope for other in _replaced.get()):
        return module
    path = "/".join(scope.path)
    meaning = [context for context in _open.get() if context.means(module, path)]
    return _in_place_of(module, meaning[0]) if meaning else module


def _replace(context, next_call, args, kwargs, call):
    """Runs another layer in the place of the one that is called."""
    module, scope = call.module, call.module.scope
    # The innermost context acts for all: interceptors around it have been heard.
    if call.method_name != "__call__" or scope is None or context is not _open.get()[0]:
        return next_call(*args, **kwargs)
    layer = standing_in(module)
    if layer is module:
        return next_call(*args, **kwargs)
    token = _replaced.set((*_replaced.get(), scope))
    try:
        plain = {type(module).__call__, type(layer).__call__} <= _PLAIN
        if plain and next_call is call.orig_method:
            return _run_inside(module, layer, args, kwargs)
        return _call(layer, args, kwargs)
    finally:
        _replaced.reset(token)


def _in_place_of(module: Any, context: _Context) -> Layer:
    """A layer with the variables and the settings of a module."""
    is_ours = isinstance(module, Layer)
    kind: Any = context.to or (type(module) if is_ours else jaxbn.linen.BatchNorm)
    names = [f.name for f in dataclasses.fields(kind) if f.init and f.name != "parent"]
    own = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return kind(**{**own, **context.options}, parent=module.scope)


def _run_inside(module: Any, layer: Layer, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Runs the code of the layer as that of the module, without one more call.

    All interceptors have heard the call of the module.
    """
    for name in ("param", "variable"):  # which Flax allows in a call of the owner
        object.__setattr__(layer, name, getattr(module, name))
    return inspect.unwrap(Layer.__call__)(layer, *args, **kwargs)


def _call(layer: Layer, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Runs the layer; what `capture_intermediates` notes is left to the module."""
    scope: Any = layer.scope
    where = "intermediates", "__call__"
    before = scope.get_variable(*where, ())
    y = layer(*args, **kwargs)
    if scope.is_mutable_collection(where[0]) and scope.has_variable(*where):
        scope.put_variable(*where, before)
    return y


def _number_of(only: Any, to: Any, options: Mapping[str, Any]) -> int:
    """The same number for equal arguments, a new one if they cannot be compared."""
    try:
        return _numbered(only, to, *((k, _hashable(v)) for k, v in options.items()))
    except TypeError:
        return next(_count)


@functools.cache
def _numbered(*_: Any) -> int:
    return next(_count)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
