"""The mask of scales and biases that no optimizer may move."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax

from jaxbn.core.paths import chosen, require_some
from jaxbn.optim.decay import is_box, place
from jaxbn.variants.models import is_layer


def frozen_mask(
    params: Any, statistics: Any, *, only: str | Callable[[str], bool] | None = None
) -> Any:
    """True for the scale and bias of batch normalization, False for all else.

    A layer with `frozen=True` has no gradient there, but weight decay and momentum
    would move them still. Zero their updates after the optimizer:

        optax.chain(optax.adamw(1e-3), optax.freeze(mask))

    Args:
        params: the parameters of a model: nested dictionaries, or an nnx.State.
        statistics: its running statistics, which tell where the layers are:
            `variables["batch_stats"]`, or `nnx.state(model, nnx.BatchStat)`.
        only: the paths of the layers that are frozen, as in `jaxbn.nnx.convert` and
            `jaxbn.linen.converting`. Default: all.

    Returns:
        A tree of the structure of `params`, of bools; one for each `nnx.Variable` or
        `nn.Partitioned`, so that it fits parameters with and without these.

    Raises:
        TypeError: if `only` is no regular expression and no function.
        ValueError: if there are no running statistics, `only` means none of them, or
            `params` has no scale and no bias at the path of one.

    Example:
        >>> params = {"norm": {"scale": 1.0, "bias": 0.0}, "dense": {"bias": 0.0}}
        >>> statistics = {"norm": {"mean": 0.0, "var": 1.0}}
        >>> jaxbn.optim.frozen_mask(params, statistics)
        {'dense': {'bias': False}, 'norm': {'bias': True, 'scale': True}}
    """
    names = defaultdict(set)
    for path, _ in jax.tree.leaves_with_path(statistics, is_leaf=is_box):
        layer, name = place(path)
        names[layer].add(name)
    is_meant = chosen(only)
    layers = [layer for layer in names if is_layer(names[layer])]
    meant = {layer for layer in layers if is_meant(layer)}
    require_some(only, meant, layers, "statistics")

    def is_frozen(path, _):
        layer, name = place(path)
        return layer in meant and name in ("scale", "bias")

    mask = jax.tree.map_with_path(is_frozen, params, is_leaf=is_box)
    found = jax.tree.leaves(mask)
    if found and not any(found):
        raise ValueError(
            "`params` must have the scale or bias of a layer in `statistics` at the "
            f"same path, got none for {min(meant)!r}. Pass `variables['params']` with "
            "`variables['batch_stats']`, or both states of one nnx model."
        )
    return mask
