"""The running statistics of a whole flax.linen model.

Works on every model, because it listens to the calls of the batch-normalization layers,
whether they come from `jaxbn.linen` or from Flax, and also in lifted transformations.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxbn.core.moments import merge
from jaxbn.core.types import BatchNormState, Moments
from jaxbn.core.values import shown
from jaxbn.deploy.model import (
    Model,
    callable_model,
    count_of,
    has_mode,
    is_norm,
    moments_of_call,
    over_members,
    require_some,
    run,
    written,
)

# Beside the statistics: lifted transformations treat both alike.
_COLLECTION, _NAME = "batch_stats", "moments_of_call"


def linen_model(
    module: Any,
    variables: Mapping[str, Any],
    *,
    call: Callable[[Any, Any], Any] = run,
    rngs: Any = None,
) -> Model:
    """The statistics of a `flax.linen` model.

    Layers of `jaxbn.linen` with statistics per domain or time step, and batch
    renormalization, stay as they are.

    Args:
        module: any linen module.
        variables: its variables, with the collection "batch_stats".
        call: `call(module, batch)` runs the model; whether layers normalize with batch
            or running statistics is decided here. Default: `module(batch)`.
        rngs: for `module.apply`, if the call needs random numbers.

    Returns:
        A Model; its `replace` returns variables.

    Raises:
        TypeError: if `module` is no linen module, `variables` no dictionary, `call` no
            function, or `rngs` of another type.
        ValueError: if `variables` contain no running statistics.

    Example:
        >>> import flax.linen as nn
        >>> norm = nn.BatchNorm(use_running_average=True)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> model = linen_model(norm, norm.init(jax.random.key(0), x))
        >>> states = jaxbn.deploy.recalibrate(model.collect, model.states, [x])
        >>> model.replace(states)["batch_stats"]["mean"]
        Array([2.], dtype=float32)
    """
    linen_module(module, variables, "nnx_model")
    callable_model(call)
    if not (rngs is None or isinstance(rngs, Mapping | Array)):
        raise TypeError(
            f"`rngs` must be a random key or a dictionary of them, got {shown(rngs)}. "
            'Write `{"dropout": jax.random.key(0)}`.'
        )
    states = dict(read(variables.get("batch_stats", {}), ()))
    require_some(states, "variables")

    def collect(states, batch):
        with intercept(_recorder()):
            _, found = module.apply(
                _replace(variables, states),
                batch,
                method=call,
                rngs=rngs,
                mutable=[_COLLECTION],
            )
        seen = dict(_recorded(found[_COLLECTION], ()))
        _require_all(states, seen)
        return {path: seen[path] for path in states}

    return Model(states, collect, functools.partial(_replace, variables))


def linen_module(module: Any, variables: Any, other: str) -> None:
    """Refuses what is no linen module with variables; `other` is for nnx."""
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(
            f"`module` must be a linen module, got {type(module).__name__}. For an nnx "
            f"module use `{other}`."
        )
    require_variables(variables)


def require_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping):
        raise TypeError(
            "`variables` must be a dictionary of collections, got "
            f"{shown(variables)}. Pass what `module.init` returns."
        )


def intercept(listener: Callable[..., Any]) -> Any:
    """A context in which `listener` hears every call of a linen module's method."""
    from flax import linen

    return linen.intercept_methods(listener)


def kind_of(module: Any) -> str | None:
    """Names the kind of a linen module: "norm", "dense", "conv" or "transposed"."""
    from flax import linen

    if has_mode(module):
        return "norm"
    kinds: dict[type, str] = {
        linen.Dense: "dense",
        linen.Conv: "conv",
        linen.ConvTranspose: "transposed",
    }
    return kinds.get(type(module))


def _recorder() -> Callable[..., Any]:
    """A listener that sows the moments of what each layer is called on."""
    running: list[Any] = []

    def record(next_call, args, kwargs, context):
        module, scope = context.module, context.module.scope
        # A layer that is running calls that of the class it extends, or another one
        # that stands in its place.
        inside = any(other is scope for other in running)
        if context.method_name != "__call__" or inside or not is_norm(module):
            return next_call(*args, **kwargs)
        mean = jnp.asarray(module.get_variable("batch_stats", "mean"))
        module.sow(
            _COLLECTION,
            _NAME,
            over_members(moments_of_call(module, *args, **kwargs), mean),
            init_fn=lambda: None,
            reduce_fn=lambda old, new: new if old is None else merge(old, new),
        )
        running.append(scope)
        try:
            return next_call(*args, **kwargs)
        finally:
            running.pop()

    return record


def read(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, BatchNormState]]:
    """Yields the pairs of path and statistics in a nested dictionary."""
    if isinstance(tree, Mapping) and "mean" in tree and "var" in tree:
        mean, var = jnp.asarray(tree["mean"]), jnp.asarray(tree["var"])
        yield "/".join(path), BatchNormState(mean, var, count_of(tree, var))
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from read(value, (*path, key))


def _recorded(tree: Any, path: tuple[str, ...]):
    """The pairs of path and moments that the calls left behind."""
    if not isinstance(tree, Mapping):
        return
    if isinstance(tree.get(_NAME), Moments):
        yield "/".join(path), tree[_NAME]
    for key, value in tree.items():
        yield from _recorded(value, (*path, key))


def _require_all(states, seen) -> None:
    if missing := sorted(states.keys() - seen.keys()):
        raise ValueError(
            f"`call` must call every batch normalization, got no call of {missing}. "
            "Run the whole model, or hand over the variables of the part."
        )


def _replace(variables: Mapping[str, Any], states: dict[str, BatchNormState]):
    def write(tree, path):
        state = states.get("/".join(path))
        if isinstance(tree, Mapping) and state is not None:
            return {key: written(tree[key], getattr(state, key, None)) for key in tree}
        if isinstance(tree, Mapping):
            return {key: write(value, (*path, key)) for key, value in tree.items()}
        return tree

    statistics = write(variables.get("batch_stats", {}), ())
    return {**variables, "batch_stats": statistics}


def unboxed(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables without the boxes of metadata around them, as `nn.Partitioned`."""
    from flax.core import meta

    return meta.unbox(dict(variables))


def boxed_as(old: Any, new: Any) -> Any:
    """`new` in the box of `old`, if it has one."""
    from flax.core import meta

    return old.replace_boxed(new) if isinstance(old, meta.AxisMetadata) else new
