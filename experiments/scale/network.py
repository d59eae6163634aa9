"""The network of a configuration as pure functions of its variables.

Whether it is made of flax.linen or flax.nnx modules, the variables are nested
dictionaries with the same names, so that one can continue what the other began.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

import jaxbn.linen
import jaxbn.nnx
from experiments.common.errors import UserError
from experiments.nets import apart, resnet
from experiments.scale import config


class Variables(NamedTuple):
    """The variables of a network.

    Attributes:
        params: nested dictionary of float32 arrays.
        batch_stats: nested dictionary of running statistics, float32.
    """

    params: Any
    batch_stats: Any


class Network(NamedTuple):
    """A network.

    Attributes:
        module: the linen module, or the nnx module without values. Called as
            `module(images)` it evaluates.
        init: `init(key)` returns new Variables.
        train: `train(variables, images, mask)` returns float32 logits and the new
            `batch_stats`; mask is None or (batch,) bool, true for images that count.
        infer: `infer(variables, images)` returns float32 logits by the running
            statistics.
    """

    module: Any
    init: Callable[[Array], Variables]
    train: Callable[[Variables, Array, Array | None], tuple[Array, Any]]
    infer: Callable[[Variables, Array], Array]


def make_network(
    model: config.Model,
    data: config.Data,
    *,
    batch_size: int,
    data_devices: int,
    axis_name: str | None,
) -> Network:
    """Returns the network of a configuration.

    Args:
        model: its options.
        data: the options of its images.
        batch_size: examples of a training step, on all devices together.
        data_devices: devices that share the batch.
        axis_name: mesh axis to share statistics over, for a program per device
            (`shard_map`, `pmap`); None for one program (`jit`).

    Raises:
        UserError: if an option does not fit the others.
    """
    if model.depth < 8 or model.depth % 6 != 2:
        raise UserError(
            f"`--depth` must be 50 or 6n + 2 and at least 8, got {model.depth}. "
            "Pass 20, 32, 44, 56 or 110 for small images, 50 for those of ImageNet."
        )
    ghost = ghost_batch_size(
        model.bn_sync, batch_size=batch_size, data_devices=data_devices
    )
    if model.norm == "flax" and model.bn_sync != "global":
        raise UserError(
            "`--bn-sync` must be 'global' with `--norm flax`, got "
            f"{model.bn_sync!r}. Pass --norm jaxbn for other groups."
        )
    norm = _norm(model, ghost, axis_name)
    return (_linen if model.api == "linen" else _nnx)(model, data, norm)


def ghost_batch_size(bn_sync: str, *, batch_size: int, data_devices: int) -> int | None:
    """The number of consecutive examples that share statistics; None for all.

    Args:
        bn_sync: "global", "device", "groups:N" or "ghost:N".
        batch_size: examples of a training step, on all devices together.
        data_devices: devices that share the batch.

    Raises:
        UserError: if it is none of these, or if the batch, the devices or the examples
            of a device cannot be divided so.
    """
    parts = re.fullmatch(r"(global|device)|(groups|ghost):([1-9]\d*)", bn_sync)
    if parts is None:
        raise UserError(
            "`--bn-sync` must be 'global', 'device', 'groups:N' or 'ghost:N', got "
            f"{bn_sync!r}. Pass for example groups:4 or ghost:32."
        )
    whole, kind, number = parts[1], parts[2], int(parts[3] or 1)
    if whole == "global":
        return None
    if batch_size % data_devices:
        raise UserError(
            "`--batch-size` must be a multiple of the number of devices, "
            f"{data_devices}, got {batch_size}. Pass another batch size."
        )
    local = batch_size // data_devices
    size = number if kind == "ghost" else number * local
    if local % size and (size % local or data_devices % (size // local)):
        what = f"the {local} examples of a device, or be a multiple of them and divide"
        what = what if kind == "ghost" else f"the {data_devices} devices, and so"
        raise UserError(
            f"`--bn-sync` must divide {what} the batch of {batch_size}, got "
            f"{bn_sync!r}. Pass another number, or global."
        )
    return None if size == batch_size else size


def with_variables(network: Network, variables: Variables) -> nnx.Module:
    """A new nnx module, in evaluation mode, with the given variables.

    For a `network` of `--api nnx`. A linen module takes its variables as
    `{"params": variables.params, "batch_stats": variables.batch_stats}`.
    """
    return _merge(_split(network.module), variables)


def _norm(model: config.Model, ghost: int | None, axis_name: str | None):
    """The factory of normalization layers."""
    linen, options = model.api == "linen", {"momentum": model.bn_momentum}
    options |= {"axis_name": axis_name, "dtype": jnp.dtype(model.dtype)}
    if model.norm == "flax":
        kind = apart.linen_flax_norm if linen else apart.NnxFlaxNorm
        return functools.partial(kind, **options)
    library = jaxbn.linen if linen else jaxbn.nnx
    options["debias"] = True
    if ghost is None:
        return functools.partial(library.BatchNorm, **options)
    return functools.partial(library.GhostBatchNorm, ghost_batch_size=ghost, **options)


def _layers(model: config.Model) -> dict[str, Any]:
    zero = model.zero_init_last_scale
    scale = nn.initializers.zeros if zero else nn.initializers.ones
    return {"dtype": jnp.dtype(model.dtype), "last_scale": scale}


def _linen(model: config.Model, data: config.Data, norm) -> Network:
    layers = resnet.Layers(norm, **_layers(model))
    sizes = model.depth, data.channels, data.classes
    return of_linen(resnet.LinenResNet(*sizes, layers), _shape(data))


def of_linen(module: nn.Module, shape: tuple[int, int, int]) -> Network:
    """The pure functions of a linen module, which may have no running statistics.

    Args:
        module: called as `resnet.LinenResNet` is.
        shape: of an image.
    """
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def init(key):
        made = module.lazy_init(key, example)
        return Variables(made["params"], made.get("batch_stats", {}))

    def train(variables, images, mask):
        logits, new = module.apply(
            variables._asdict(), images, train=True, mask=mask, mutable="batch_stats"
        )
        return logits, new.get("batch_stats", {})

    def infer(variables, images) -> Any:
        return module.apply(variables._asdict(), images)

    return Network(module, init, train, infer)


def _nnx(model: config.Model, data: config.Data, norm) -> Network:
    def make(key):
        layers = resnet.Layers(norm, rngs=nnx.Rngs(key), **_layers(model))
        sizes = model.depth, data.channels, data.classes
        made = resnet.NnxResNet(*sizes, layers)
        made.eval()
        return made

    module = nnx.eval_shape(make, jax.random.key(0))
    parts = _split(module)

    def init(key):
        _, params, batch_stats = _split(make(key))
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))

    def train(variables, images, mask):
        made: Any = _merge(parts, variables)
        logits = made(images, train=True, mask=mask)
        return logits, nnx.to_pure_dict(nnx.state(made, nnx.BatchStat))

    def infer(variables, images):
        made: Any = _merge(parts, variables)
        return made(images)

    return Network(module, init, train, infer)


def _split(module: nnx.Module) -> Any:
    return nnx.split(module, nnx.Param, nnx.BatchStat)


def _merge(parts: Any, variables: Variables) -> nnx.Module:
    graph, *states = jax.tree.map(lambda leaf: leaf, parts)
    for state, values in zip(states, variables, strict=True):
        nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, *states)


def _shape(data: config.Data) -> tuple[int, int, int]:
    return data.image_size, data.image_size, data.channels
