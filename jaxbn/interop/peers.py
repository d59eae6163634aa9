"""Two layers on the same data: how far apart they are."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbn.core.values import shown
from jaxbn.interop import arguments
from jaxbn.interop.layer import Layer, checked


class Peer(NamedTuple):
    """The same layer elsewhere, on NumPy arrays.

    Attributes:
        train: normalizes a batch and updates the running statistics.
        evaluate: normalizes with them.
        statistics: returns running mean and variance.
    """

    train: Callable[[np.ndarray], Any]
    evaluate: Callable[[np.ndarray], Any]
    statistics: Callable[[], tuple[Any, Any]]


class Difference(NamedTuple):
    """Largest absolute differences between two layers.

    Attributes:
        train: of the outputs in training.
        evaluate: of the outputs at evaluation, before and after training.
        mean: of the running means after training.
        var: of the running variances after training.
    """

    train: float
    evaluate: float
    mean: float
    var: float


def compare(layer: Layer, peer: Peer, batches: Iterable[Any]) -> Difference:
    """Runs both sides on the same data and reports how far apart they are.

    Args:
        layer: this side.
        peer: the other side; its own statistics change.
        batches: the data to train on, one step each; at least one.

    Returns:
        The differences; NaN where one side is not finite.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if `batches` is empty, or has arrays that do not fit one of the
            sides, or the sides differ in what they return.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2))
        >>> peer = jaxbn.interop.Peer(
        ...     lambda x: (x - x.mean(0)) / (x.var(0) + 1e-5) ** 0.5,
        ...     lambda x: x / (1 + 1e-5) ** 0.5,
        ...     lambda: layer.train(x)[1].state[:2],
        ... )
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.compare(layer, peer, [x]).train < 1e-5
        True
    """
    layer = checked(layer)
    if not isinstance(peer, Peer):
        raise TypeError(
            f"`peer` must be a jaxbn.interop.Peer, got {shown(peer)}. Make "
            "one of three functions."
        )
    arrays = _arrays(layer, batches)

    def at_evaluation(x: np.ndarray) -> float:
        theirs = _theirs(x, lambda: peer.evaluate(x))
        return _distance("evaluate", layer.evaluate(jnp.asarray(x)), theirs)

    outputs, evaluations = [], [at_evaluation(arrays[0])]
    for x in arrays:
        y, layer = layer.train(jnp.asarray(x))
        outputs.append(_distance("train", y, _theirs(x, lambda x=x: peer.train(x))))
    evaluations.append(at_evaluation(arrays[-1]))
    mean, var = _theirs(arrays[-1], lambda: tuple(peer.statistics()), length=2)
    return Difference(
        float(np.max(outputs)),  # of Python, `max` would pass over NaN
        float(np.max(evaluations)),
        _distance("statistics", layer.state.mean, mean),
        _distance("statistics", layer.state.var, var),
    )


def numbers_of(batches: Iterable[Any]) -> dict[str, np.ndarray]:
    """The batches as NumPy arrays, at least one, by what messages call them."""
    try:
        if isinstance(batches, str | bytes | Mapping):
            raise TypeError("these are iterable too")
        listed = list(batches)
    except Exception as error:  # a foreign object may raise anything
        raise TypeError(
            f"`batches` must be a list of arrays, got {shown(batches)}. "
            "Write `[x]` for one batch."
        ) from error
    labels = [f"`batches[{i}]`" for i in range(len(listed))]
    values = [
        arguments.host(label, arguments.numbers(label, x))
        for label, x in zip(labels, listed, strict=True)
    ]
    if not values:
        raise ValueError(
            "`batches` must contain a batch, got none. One is enough to compare on."
        )
    return dict(zip(labels, values, strict=True))


def _arrays(layer: Layer, batches: Iterable[Any]) -> list[np.ndarray]:
    """The batches in the type that JAX computes them in, which both sides get."""
    values = numbers_of(batches)
    for label, x in values.items():
        _check_batch(layer, label, x)
    return [np.asarray(jnp.asarray(x)) for x in values.values()]


def _check_batch(layer: Layer, label: str, x: Any) -> None:
    axis, size = layer.axis, layer.state.mean.size
    fits = x.ndim >= 2 and -x.ndim <= axis < x.ndim and x.shape[axis] == size
    if not fits or not x.size:
        raise ValueError(
            f"{label} must have examples with {size} features on axis {axis}, got "
            f"shape {x.shape}. Write `[x]` for one batch, in the layout of the layer."
        )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{label} must be floating point, got {x.dtype}. Convert it with "
            "`x.astype(np.float32)`."
        )
    arguments.finite(label, jnp.asarray(x))


def _theirs(x: np.ndarray, call: Callable[[], Any], *, length: int | None = None):
    """Calls the other side; an error there is about the batch, or a bug."""
    try:
        result = call()
        if length is not None and len(result) != length:
            raise ValueError(f"{length} arrays expected, got {len(result)}")
    except Exception as error:
        raise ValueError(
            f"`batches` must suit the other side, got {type(error).__name__} for the "
            f"shape {x.shape} and type {x.dtype}: {error}. Pass what that side accepts."
        ) from error
    return result


def _distance(name: str, ours: Any, theirs: Any) -> float:
    theirs = np.asarray(arguments.numbers(f"What `peer.{name}` returns", theirs))
    ours = np.asarray(ours)
    # Statistics may keep the other axes, with size one.
    if np.squeeze(ours).shape != np.squeeze(theirs).shape:
        raise ValueError(
            f"What `peer.{name}` returns must have the shape {ours.shape}, got "
            f"{theirs.shape}. Bring it into the layout of the layer."
        )
    kind = np.result_type(ours.dtype, theirs.dtype, np.float64)
    gap = ours.astype(kind) - theirs.astype(kind).reshape(ours.shape)
    return float(np.abs(gap).max(initial=0))
