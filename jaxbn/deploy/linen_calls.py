"""Records the layers that a flax.linen model calls, and their inputs."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxbn.deploy.describe import Call, Heard, described
from jaxbn.deploy.linen_model import intercept, kind_of, read


def calls_of(module, variables, example, call) -> list[Call]:
    """The calls in order, without computing anything."""
    from jaxbn.linen_models import standing_in

    calls: list[Call] = []
    running: dict[tuple[str, ...], Any] = {}

    def listen(next_call, args, kwargs, context):
        module, kind = context.module, kind_of(context.module)
        path = module.scope.path
        if context.method_name != "__call__" or not kind:
            return next_call(*args, **kwargs)
        # A layer that is running calls that of the class it extends, or another one
        # that stands in its place, whose settings are those that hold.
        inside = path in running
        running[path] = standing_in(module)
        y = next_call(*args, **kwargs)
        if inside:
            return y
        module, heard = running.pop(path), Heard(args, kwargs, y)
        if heard.input is not None:
            calls.append(_described(module, kind, heard, variables))
        return y

    def listened(used, example):
        with intercept(listen):
            # Training is refused for a better reason than variables that are fixed.
            module.apply(used, example, method=call, mutable=["batch_stats"])

    jax.eval_shape(listened, dict(variables), example)
    return calls


def norms_of(variables: Mapping[str, Any]) -> list[str]:
    """The paths of everything that has a running mean and variance."""
    return list(dict(read(variables.get("batch_stats", {}), ())))


def _described(module, kind: str, heard: Heard, variables) -> Call:
    path = module.scope.path
    parameters = _at(variables.get("params", {}), path)
    statistics = _at(variables.get("batch_stats", {}), path)
    return described(
        "/".join(path),
        kind,
        module,
        heard,
        of=type(module),
        arrays={**parameters, **statistics},
        has_bias="bias" in parameters,
    )


def _at(tree: Mapping[str, Any], path) -> Mapping[str, Any]:
    for key in path:
        tree = tree.get(key, {})
    return tree
