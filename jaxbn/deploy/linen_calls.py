"""Records the layers that a flax.linen model calls, and their inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxbn.deploy.calls import STACKED, Call, first_of, pads
from jaxbn.deploy.linen_model import intercept, kind_of, read


def calls_of(module, variables, example, call) -> list[Call]:
    """The calls in order, computing at most what changes the statistics."""
    calls: list[Call] = []
    running: set[tuple[str, ...]] = set()

    def listen(next_call, args, kwargs, context):
        module, kind = context.module, kind_of(context.module)
        path = module.scope.path
        # A layer that is running calls that of the class it extends.
        if context.method_name != "__call__" or not kind or path in running:
            return next_call(*args, **kwargs)
        running.add(path)
        y = next_call(*args, **kwargs)
        running.remove(path)
        if (x := first_of(args, kwargs)) is not None:
            extra = kwargs.get("residual") is not None
            calls.append(_described(module, kind, x, y, variables, extra=extra))
        return y

    def statistics(used, example):
        _, changed = module.apply(used, example, method=call, mutable=["batch_stats"])
        return changed.get("batch_stats", {})

    def is_untouched(used, example):
        with intercept(listen):
            new = statistics(used, example)
        pairs = _pairs(used.get("batch_stats", {}), new)
        untouched.append(all(a is b for a, b in pairs))

    untouched: list[bool] = []
    jax.eval_shape(is_untouched, dict(variables), example)
    # Lifted transformations return new arrays, whether or not the values are.
    if not untouched[-1]:
        new = jax.jit(statistics)(dict(variables), example)
        _check_evaluation(variables.get("batch_stats", {}), new)
    return calls


def norms_of(variables: Mapping[str, Any]) -> list[str]:
    """The paths of everything that has a running mean and variance."""
    return list(dict(read(variables.get("batch_stats", {}), ())))


def _described(module, kind: str, x, y, variables, *, extra: bool) -> Call:
    path = module.scope.path
    own = _at(variables.get("params", {}), path)
    statistics = _at(variables.get("batch_stats", {}), path)
    return Call(
        path="/".join(path),
        kind=kind,
        input=x,
        output=y,
        epsilon=getattr(module, "epsilon", 0.0),
        axis=-2 if getattr(module, "transpose_kernel", False) else -1,
        groups=getattr(module, "feature_group_count", 1),
        pads=kind == "conv" and pads(module.padding),
        has_bias="bias" in own,
        linear=getattr(module, "activation", None) is None and not extra,
        obstacle=_obstacle(module, kind, x, own, statistics),
    )


def _obstacle(module, kind, x, own, statistics) -> str | None:
    if kind == "norm":
        if statistics["mean"].ndim != 1:
            return STACKED
        last = module.axis in (-1, x.ndim - 1)
        return None if last else "normalizes another axis than the last"
    rank = 0 if kind == "dense" else np.size(module.kernel_size)
    return None if own["kernel"].ndim == rank + 2 else STACKED


def _at(tree: Mapping[str, Any], path) -> Mapping[str, Any]:
    for key in path:
        tree = tree.get(key, {})
    return tree


def _pairs(old, new):
    return zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)


def _check_evaluation(old, new) -> None:
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in _pairs(old, new)):
        raise ValueError(
            "`call` must run the model at evaluation, got a change of "
            "`batch_stats`. Pass a `call` with `use_running_average=True`."
        )
