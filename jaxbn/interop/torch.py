"""PyTorch: modules, state dictionaries and what safetensors files contain."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxbn.interop.layer import (
    Difference,
    Layer,
    Peer,
    compare,
    number_of_updates,
    running,
    vector,
)

_MEAN = "running_mean"


def from_torch(
    source: Any,
    *,
    prefix: str = "",
    momentum: float | None = 0.1,
    epsilon: float = 1e-5,
) -> Layer:
    """Reads a layer from PyTorch.

    PyTorch's momentum p is the weight of the new value, so the layer's is 1 - p; its
    running variance is the unbiased one; features are on axis 1.

    Args:
        source: a BatchNorm module, or a state dictionary of tensors or NumPy arrays.
        prefix: what comes before "running_mean" in the keys, as "layer1.0.bn1.".
        momentum: PyTorch's; used for a state dictionary only, which does not tell it.
        epsilon: the same.

    Returns:
        A Layer that goes on training as the module would.

    Raises:
        ValueError: if there is no such layer, or it tracks no statistics.

    Example:
        >>> import numpy as np
        >>> layer = jaxbn.interop.from_torch(
        ...     {"bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2)},
        ...     prefix="bn.",
        ... )
        >>> layer.momentum, layer.unbiased, layer.axis
        (0.9, True, 1)
    """
    values: Mapping[str, Any] = source
    if hasattr(source, "state_dict"):
        momentum, epsilon = source.momentum, source.eps
        values = source.state_dict()
    if prefix + _MEAN not in values:
        raise ValueError(
            f"`source` must contain {prefix + _MEAN!r}, got the layers "
            f"{torch_layers(values)!r}. Pass one of them as `prefix`."
        )
    found = {
        name: _array(values[prefix + name])
        for name in (_MEAN, "running_var", "num_batches_tracked", "weight", "bias")
        if prefix + name in values
    }
    count = found.get("num_batches_tracked", 0)
    return Layer(
        running(found[_MEAN], found["running_var"], count),
        vector(found.get("weight")),
        vector(found.get("bias")),
        momentum=None if momentum is None else 1 - momentum,
        epsilon=epsilon,
        axis=1,
        unbiased=True,
    )


def to_torch(layer: Layer, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Writes a layer as entries of a PyTorch state dictionary.

    Values are kept as they are, so evaluation is the same there. To go on training,
    give the module `momentum=1 - layer.momentum` and `eps=layer.epsilon`; PyTorch then
    adds unbiased variances, also where the layer stored biased ones.

    Args:
        layer: the layer.
        prefix: what to put before each name.

    Returns:
        NumPy arrays by key: `safetensors.numpy.save_file` and `write_safetensors` take
        them as they are, `module.load_state_dict` after `torch.from_numpy` on each.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2))
        >>> sorted(jaxbn.interop.to_torch(layer, prefix="bn."))
        ['bn.num_batches_tracked', 'bn.running_mean', 'bn.running_var']
    """
    values = {
        _MEAN: np.array(layer.state.mean),
        "running_var": np.array(layer.state.var),
        "num_batches_tracked": np.array(number_of_updates(layer.state), np.int64),
    }
    if layer.scale is not None:
        values["weight"] = np.array(layer.scale)
    if layer.bias is not None:
        values["bias"] = np.array(layer.bias)
    return {prefix + name: value for name, value in values.items()}


def torch_layers(values: Mapping[str, Any]) -> list[str]:
    """The prefixes of all layers with running statistics in a state dictionary.

    Example:
        >>> jaxbn.interop.torch_layers({"bn.running_mean": 0, "bn.running_var": 1})
        ['bn.']
    """
    return [key.removesuffix(_MEAN) for key in values if key.endswith(_MEAN)]


def check_torch(module: Any, batches: Iterable[Any]) -> Difference:
    """Trains a copy of a PyTorch module and the layer read from it side by side.

    Args:
        module: a BatchNorm module, on the CPU; stays as it is.
        batches: NumPy arrays with features on axis 1.

    Returns:
        The largest differences.

    Example:
        >>> import torch
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_torch(torch.nn.BatchNorm1d(2), [x]).train < 1e-5
        True
    """
    import copy

    import torch

    twin = copy.deepcopy(module)

    def apply(x, *, training):
        twin.train(training)
        with torch.no_grad():
            return twin(torch.from_numpy(np.array(x))).numpy()

    peer = Peer(
        lambda x: apply(x, training=True),
        lambda x: apply(x, training=False),
        lambda: (twin.running_mean.numpy(), twin.running_var.numpy()),
    )
    return compare(from_torch(module), peer, batches)


def _array(value: Any) -> Any:
    """A tensor as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return value.float().numpy() if "bfloat16" in str(value.dtype) else value.numpy()
