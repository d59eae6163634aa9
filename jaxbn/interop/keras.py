"""Keras 3: `keras.layers.BatchNormalization` on any backend."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxbn.interop.layer import Difference, Layer, Peer, compare, running, vector


def from_keras(source: Any) -> Layer:
    """Reads a built layer from Keras.

    Keras counts momentum as here and stores the biased variance; its default epsilon is
    1e-3.

    Args:
        source: a `keras.layers.BatchNormalization` without renorm.

    Returns:
        A Layer that goes on training as the Keras layer would.

    Raises:
        ValueError: if the layer is not built, or renormalizes.

    Example:
        >>> import keras
        >>> source = keras.layers.BatchNormalization()
        >>> source.build((None, 2))
        >>> jaxbn.interop.from_keras(source).epsilon
        0.001
    """
    if getattr(source, "moving_mean", None) is None:
        raise ValueError(
            f"`source` must be built, got {source!r} without weights. Call it once, or "
            "`source.build(shape)`."
        )
    if source.renorm:
        raise ValueError(
            f"`source` must not renormalize, got renorm={source.renorm!r}. Use "
            "`jaxbn.variants.renorm` and copy its statistics by hand."
        )
    return Layer(
        running(_array(source.moving_mean), _array(source.moving_variance)),
        vector(_array(source.gamma)),
        vector(_array(source.beta)),
        momentum=source.momentum,
        epsilon=source.epsilon,
        axis=source.axis,
    )


def to_keras(layer: Layer) -> list[np.ndarray]:
    """Writes a layer as the weights of a Keras layer.

    Args:
        layer: the layer. Make the Keras one with its `momentum`, `epsilon` and `axis`,
            `scale=layer.scale is not None` and `center=layer.bias is not None`.

    Returns:
        Arrays in the order that `set_weights` takes: gamma, beta, mean, variance.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2), jnp.ones(2))
        >>> len(jaxbn.interop.to_keras(layer))
        3
    """
    values = [layer.scale, layer.bias, layer.state.mean, layer.state.var]
    return [np.array(value) for value in values if value is not None]


def check_keras(source: Any, batches: Iterable[Any]) -> Difference:
    """Trains a copy of a Keras layer and the layer read from it side by side.

    Args:
        source: a built `keras.layers.BatchNormalization`; stays as it is.
        batches: NumPy arrays.

    Returns:
        The largest differences.

    Example:
        >>> import keras
        >>> source = keras.layers.BatchNormalization()
        >>> source.build((None, 2))
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_keras(source, [x]).train < 1e-5
        True
    """
    batches = [np.asarray(batch) for batch in batches]
    twin = type(source).from_config(source.get_config())
    twin.build(batches[0].shape if batches else source.moving_mean.shape)
    twin.set_weights(source.get_weights())
    peer = Peer(
        lambda x: _array(twin(x, training=True)),
        lambda x: _array(twin(x, training=False)),
        lambda: (_array(twin.moving_mean), _array(twin.moving_variance)),
    )
    return compare(from_keras(source), peer, batches)


def _array(value: Any) -> Any:
    if value is None:
        return None
    from keras import ops

    return np.asarray(ops.convert_to_numpy(value))
