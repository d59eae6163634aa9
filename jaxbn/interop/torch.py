"""PyTorch: modules, state dictionaries and what safetensors files contain."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbn.core.values import shown
from jaxbn.interop import arguments, linen, nnx
from jaxbn.interop.layer import Layer, checked, read
from jaxbn.interop.targets import check_settings, number_of_updates
from jaxbn.interop.torch_model import TorchModel, fill
from jaxbn.interop.torch_pairs import Rules

_MEAN = "running_mean"
_NAMES = (_MEAN, "running_var", "num_batches_tracked", "weight", "bias")


def from_torch(
    source: Any,
    *,
    prefix: str = "",
    momentum: float | None = 0.1,
    epsilon: float = 1e-5,
    into: Any = None,
    rules: Rules | None = None,
) -> Any:
    r"""Reads a layer from PyTorch, or a whole model into one of Flax.

    PyTorch's momentum p is the weight of the new value, so the layer's is 1 - p; its
    running variance is the unbiased one; features are on axis 1.

    Args:
        source: a BatchNorm module, also a synchronized or a frozen one, or a state
            dictionary of tensors or NumPy arrays. That of an InstanceNorm with
            statistics looks like one of a BatchNorm and cannot be told apart.
        prefix: what comes before "running_mean" in the keys, as "layer1.0.bn1.".
        momentum: PyTorch's; used where the source does not tell it, as a state
            dictionary or a frozen module.
        epsilon: the same.
        into: the variables of a linen model, or an nnx model, to be filled with batch
            normalization, dense layers, convolutions, slopes of PReLU and other scales,
            in Flax's layout. Batch normalization without running statistics needs the
            module as `source`; there they become those before the first batch.
            Momentum stays that of the model; an nnx model must have PyTorch's
            epsilon, which linen variables do not tell. Nor do they tell transposed
            convolutions, which must have `transpose_kernel=True` there, nor does a
            dictionary tell an embedding from a dense layer. A dense layer behind a
            flattened image needs its kernel in another order; docs/switching/torch.md
            has the lines.
        rules: from names in PyTorch without the last part to paths in `into`, for
            example {r"layer(\d)[.]bn": r"blocks/\1/norm"}, or a function; what they
            leave out stays as it is. Default: layers of one kind and shape in the
            order of their definition, of linen in that of their calls; refused where
            names were sorted since, as by `jax.jit`, and more than numbers differ.
            Look at `matched`, or at outputs with `check_torch_model`.

    Returns:
        A Layer that goes on training as the module would; a frozen module, which has
        running statistics in training too, is the same at evaluation only. With `into`
        a TorchModel: the filled model, and what was matched.

    Raises:
        TypeError: if `source` is neither, or holds what are no numbers.
        ValueError: if there is no such layer, it tracks no statistics, it does more
            than normalize, or its values cannot be those of a layer; if a layer does
            not fit its place in `into`, or the types there cannot hold its values.
        NotImplementedError: if a transposed convolution of a module leads into linen.

    Example:
        >>> import numpy as np
        >>> layer = jaxbn.interop.from_torch(
        ...     {"bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2)},
        ...     prefix="bn.",
        ... )
        >>> layer.momentum, layer.unbiased, layer.axis
        (0.9, True, 1)
    """
    if into is None and rules is not None:
        raise ValueError(
            f"`rules` must be None without `into`, got {shown(rules)}. Pass the model "
            "that they lead into."
        )
    if into is not None and prefix:
        raise ValueError(
            f"`prefix` must be empty with `into`, got {prefix!r}. Name layers by "
            "`rules`."
        )
    if into is not None:
        return _whole(source, into, rules, momentum=momentum, epsilon=epsilon)
    arguments.text("prefix", prefix, "Take one that `torch_layers` lists.")
    if arguments.is_a(source, "Module", "torch"):
        _check_module(source)
        momentum = getattr(source, "momentum", momentum)
        epsilon = getattr(source, "eps", epsilon)
        values = source.state_dict()
    elif isinstance(source, Mapping):
        values = source
    else:
        raise TypeError(
            "`source` must be a BatchNorm module or a state dictionary, got "
            f"{shown(source)}. Files are read by `torch.load` or "
            "`read_safetensors`."
        )
    _check_keys(values, prefix)
    if momentum is not None:
        weight_of_new = "It is PyTorch's, the weight of the new value."
        momentum = 1 - arguments.share("momentum", momentum, weight_of_new)
    return read(
        {f"`source[{prefix + k!r}]`": values.get(prefix + k) for k in _NAMES},
        momentum=momentum,
        epsilon=epsilon,
        axis=1,
        unbiased=True,
    )


def _whole(source: Any, into: Any, rules: Rules | None, **settings: Any) -> TorchModel:
    """A whole model: each of its layers as `from_torch` reads it."""
    modules = {}
    if arguments.is_a(source, "Module", "torch"):
        modules = dict(source.named_modules())
        source = source.state_dict()
    arguments.mapping("source", source, "Pass a module or `module.state_dict()`.")

    def layer_at(prefix: str) -> Layer:
        module = modules.get(prefix.removesuffix("."))
        if module is not None:
            return from_torch(module, **settings)
        return from_torch(source, prefix=prefix, **settings)

    if isinstance(into, Mapping):
        target = linen.model_layers(into)
    elif arguments.is_a(into, "Module", "flax.nnx"):
        target = nnx.model_layers(into)
    else:
        raise TypeError(
            "`into` must be variables of linen or an nnx model, got "
            f"{shown(into)}. `module.init` returns variables."
        )
    return fill(source, target, rules, layer_at, modules, settings["epsilon"])


def to_torch(layer: Layer, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Writes a layer as entries of a PyTorch state dictionary.

    Give the module `momentum=1 - layer.momentum` and `eps=layer.epsilon`, which a state
    dictionary does not hold. The rest is the same in every module of PyTorch, so it
    must be in the layer: `axis=1`, `unbiased=True` and `debias=False`.

    Args:
        layer: the layer. One of Flax becomes one of PyTorch, with other variances in
            training and channels first, by `layer._replace(axis=1, unbiased=True)`.
        prefix: what to put before each name.

    Returns:
        NumPy arrays by key: `safetensors.numpy.save_file` and `write_safetensors` take
        them as they are, `module.load_state_dict` after `torch.from_numpy` on each.

    Raises:
        TypeError: if `layer` is no Layer.
        ValueError: if it has other settings, or no values because it is traced.

    Example:
        >>> state = jaxbn.init_state(2)
        >>> layer = jaxbn.interop.Layer(state, axis=1, unbiased=True)
        >>> sorted(jaxbn.interop.to_torch(layer, prefix="bn."))
        ['bn.num_batches_tracked', 'bn.running_mean', 'bn.running_var']
    """
    layer = checked(layer)
    arguments.text("prefix", prefix, "It stands before each name, as 'bn1.'.")
    every = "in every layer of PyTorch"
    check_settings(layer, every, axis=1, unbiased=True, debias=False)
    values = {
        _MEAN: np.array(layer.state.mean),
        "running_var": np.array(layer.state.var),
        "num_batches_tracked": np.array(number_of_updates(layer, "PyTorch"), np.int64),
    }
    if layer.scale is not None:
        values["weight"] = np.array(layer.scale)
    if layer.bias is not None:
        values["bias"] = np.array(layer.bias)
    return {prefix + name: value for name, value in values.items()}


def torch_layers(values: Mapping[str, Any]) -> list[str]:
    """The prefixes of all layers with running statistics in a state dictionary.

    Args:
        values: the state dictionary of a model.

    Returns:
        What stands before "running_mean", in the order of the dictionary.

    Raises:
        TypeError: if `values` is no dictionary.

    Example:
        >>> jaxbn.interop.torch_layers({"bn.running_mean": 0, "bn.running_var": 1})
        ['bn.']
    """
    arguments.mapping("values", values, "Of a module it is `module.state_dict()`.")
    keys = (key for key in values if isinstance(key, str))
    return [key.removesuffix(_MEAN) for key in keys if key.endswith(_MEAN)]


def _check_module(module: Any) -> None:
    """Refuses modules that do other than, or more than, batch normalization."""
    name, bases = type(module).__name__, [b.__name__ for b in type(module).__mro__]
    # Frozen layers, which have buffers only, are written by hand.
    frozen = not any(True for _ in module.parameters()) and "_NormBase" not in bases
    plain = frozen and set(_NAMES[:2]) <= set(module.state_dict()) <= set(_NAMES)
    if not plain and not any("BatchNorm" in base for base in bases):
        layers = torch_layers(module.state_dict())
        raise ValueError(
            f"`source` must be a BatchNorm module, got {name}. Pass such a part of it, "
            f"or `source.state_dict()` with one of the layers {layers!r} as `prefix`."
        )
    parts = [type(part).__name__ for part in module.children()]
    if more := [part for part in parts if part != "Identity"]:
        raise ValueError(
            f"`source` must only normalize, got {name} with {', '.join(more)}. Pass "
            "`source.state_dict()`, and apply the rest after the layer."
        )


def _check_keys(values: Mapping[str, Any], prefix: str) -> None:
    """Refuses dictionaries without the layer, or with more than one in its place."""
    layers = torch_layers(values)
    got = f"the layers {layers!r}" if layers else f"the keys {list(values)[:6]!r}"
    for name in _NAMES[:2]:
        if prefix + name not in values:
            raise ValueError(
                f"`source` must contain {prefix + name!r}, got {got}. Pass the state "
                "dictionary of a layer with running statistics, or one of a model with "
                "one of its layers as `prefix`."
            )
    own = [key for key in values if isinstance(key, str) and key.startswith(prefix)]
    if more := [key for key in own if key[len(prefix) :] not in _NAMES]:
        raise ValueError(
            f"`source` must contain a plain layer at {prefix!r}, got {more[:6]!r} "
            "beside it. Remove pruning and parametrizations first; another kind of "
            "layer cannot be converted."
        )
