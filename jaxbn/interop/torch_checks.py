"""Modules of PyTorch run beside what was made of them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxbn.core.values import is_function, shown
from jaxbn.interop import arguments
from jaxbn.interop.peers import Difference, Peer, compare, numbers_of
from jaxbn.interop.torch import from_torch


def check_torch(module: Any, batches: Iterable[Any]) -> Difference:
    """Trains a copy of a PyTorch module and the layer read from it side by side.

    Args:
        module: a BatchNorm module, on the CPU; stays as it is.
        batches: NumPy arrays with features on axis 1.

    Returns:
        The largest differences.

    Raises:
        TypeError, ValueError: as `from_torch` for a module, and as `compare`.

    Example:
        >>> import torch
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_torch(torch.nn.BatchNorm1d(2), [x]).train < 1e-5
        True
    """
    if not arguments.is_a(module, "Module", "torch"):
        raise TypeError(
            f"`module` must be a BatchNorm module, got {shown(module)}. Load "
            "a state dictionary into one to run it."
        )
    layer = from_torch(module)
    twin, run = _twin_of(module)
    kind = twin.running_mean.dtype
    if kind.itemsize > layer.state.mean.dtype.itemsize:
        raise ValueError(
            f"`module` must have no wider type than JAX has, got {kind}. "
            "Enable `jax_enable_x64`, or convert it with `module.float()`."
        )
    peer = Peer(
        lambda x: run(x, training=True),
        lambda x: run(x, training=False),
        lambda: (twin.running_mean.numpy(), twin.running_var.numpy()),
    )
    return compare(layer, peer, batches)


def check_torch_model(
    module: Any, function: Callable[[np.ndarray], Any], batches: Iterable[Any]
) -> float:
    """Compares a PyTorch model at evaluation with a function in JAX.

    Args:
        module: a module of PyTorch, on the CPU; stays as it is.
        function: from a batch, laid out as for PyTorch, to what the module returns.
        batches: NumPy arrays.

    Returns:
        The largest absolute difference of the outputs.

    Raises:
        TypeError: if `module` is no module of PyTorch, `function` no function, or a
            batch no array of numbers.
        ValueError: if there is no batch, one of both does not take it, or outputs
            differ in shape.

    Example:
        >>> import torch
        >>> module = torch.nn.BatchNorm1d(2)
        >>> layer = jaxbn.interop.from_torch(module)
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_torch_model(module, layer.evaluate, [x]) < 1e-5
        True
    """
    if not arguments.is_a(module, "Module", "torch"):
        raise TypeError(
            f"`module` must be a module of PyTorch, got {shown(module)}. Load a state "
            "dictionary into one to run it."
        )
    if not is_function(function):
        raise TypeError(
            f"`function` must be a function of a batch, got {shown(function)}. For "
            "linen write `lambda x: model.apply(variables, x)`."
        )
    _, run = _twin_of(module)
    gaps = []
    for x in numbers_of(batches).values():
        want = _of("module", lambda x: run(x, training=False), x)
        got = _of("function", function, x)
        if got.shape != want.shape:
            raise ValueError(
                f"`function` must return shape {want.shape} as `module` does, got "
                f"{got.shape}. Transpose the images on the way in and out."
            )
        gaps.append(np.abs(got - want).max(initial=0))
    return float(np.max(gaps))  # of Python, `max` would pass over NaN


def _of(name: str, function: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    """Runs a model, or raises an error that names the one that refuses the batch."""
    try:
        return np.asarray(function(x))
    except Exception as error:  # of somebody else's model
        raise ValueError(
            f"`{name}` must take batches of shape {x.shape}, got "
            f"{type(error).__name__} ({error}). Pass batches that both take, laid out "
            "as for PyTorch."
        ) from error


def _twin_of(module: Any) -> tuple[Any, Callable[..., np.ndarray]]:
    """A copy of a PyTorch module, and a function that runs it on NumPy arrays."""
    import copy

    import torch

    twin = copy.deepcopy(module)

    def run(x: np.ndarray, *, training: bool) -> np.ndarray:
        twin.train(training)
        with torch.no_grad():
            return twin(torch.from_numpy(np.array(x))).numpy()

    return twin, run
