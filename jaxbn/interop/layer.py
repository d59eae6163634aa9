"""A batch-normalization layer outside of any framework, and how to compare two."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.normalize import batch_norm_inference
from jaxbn.core.types import BatchNormState


class Layer(NamedTuple):
    """Everything a layer is made of; what every conversion goes through.

    Attributes:
        state: running statistics.
        scale: shape (C,), or None for one.
        bias: shape (C,), or None for zero.
        momentum: weight of the old running value; None averages all batches equally.
        epsilon: added to the variance.
        axis: the feature axis.
        unbiased: whether running variances are divided by n - 1.
        debias: whether the running average starts without its initial values.
    """

    state: BatchNormState
    scale: Array | None = None
    bias: Array | None = None
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    axis: int = -1
    unbiased: bool = False
    debias: bool = False

    def train(self, x: Array) -> tuple[Array, "Layer"]:
        """Normalizes a batch, and the layer with the next state."""
        y, state = batch_norm(
            x,
            self.state,
            self.scale,
            self.bias,
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            debias=self.debias,
        )
        return y, self._replace(state=state)

    def evaluate(self, x: Array) -> Array:
        """Normalizes with the running statistics."""
        arrays = (x, self.state, self.scale, self.bias)
        return batch_norm_inference(*arrays, axis=self.axis, epsilon=self.epsilon)


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
        The differences.

    Raises:
        ValueError: if `batches` is empty.

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
    arrays = [np.asarray(batch) for batch in batches]
    if not arrays:
        raise ValueError(
            "`batches` must contain a batch, got none. One is enough to compare on."
        )

    def at_evaluation(x: np.ndarray) -> float:
        return _distance(layer.evaluate(jnp.asarray(x)), peer.evaluate(x))

    train, evaluate = 0.0, at_evaluation(arrays[0])
    for x in arrays:
        y, layer = layer.train(jnp.asarray(x))
        train = max(train, _distance(y, peer.train(x)))
    evaluate = max(evaluate, at_evaluation(arrays[-1]))
    mean, var = peer.statistics()
    return Difference(
        train,
        evaluate,
        _distance(layer.state.mean, mean),
        _distance(layer.state.var, var),
    )


def _distance(ours: Any, theirs: Any) -> float:
    gap = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64).reshape(
        np.shape(ours)
    )
    return float(np.abs(gap).max(initial=0))


def vector(values: Any) -> Array | None:
    """One value per channel as a float array of rank 1, or None."""
    if values is None:
        return None
    array = jnp.asarray(values)
    return array.reshape(-1).astype(jnp.promote_types(array.dtype, jnp.float32))


def running(mean: Any, var: Any, count: Any = 0) -> BatchNormState:
    """Running statistics of rank 1 from arrays of any rank and one count."""
    mean, var = vector(mean), vector(var)
    assert mean is not None and var is not None
    updates = jnp.broadcast_to(jnp.asarray(count, var.dtype), var.shape)
    return BatchNormState(mean, var, updates)


def number_of_updates(state: BatchNormState) -> int:
    """The number of updates of a whole layer."""
    return int(jax.device_get(state.count).max(initial=0))
