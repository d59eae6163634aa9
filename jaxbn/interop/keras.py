"""Keras 3: `keras.layers.BatchNormalization` on any backend."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxbn.core.values import shown
from jaxbn.interop import arguments
from jaxbn.interop.layer import Layer, checked, read
from jaxbn.interop.peers import Difference, Peer, compare
from jaxbn.interop.targets import check_average, check_settings


def from_keras(source: Any) -> Layer:
    """Reads a built layer from Keras.

    Keras counts momentum as here and stores the biased variance; its default epsilon is
    1e-3.

    Args:
        source: a `keras.layers.BatchNormalization` without renorm.

    Returns:
        A Layer that goes on training as the Keras layer would.

    Raises:
        TypeError: if `source` is another kind of layer.
        ValueError: if it is not built, renormalizes, or is not trainable, or its values
            cannot be those of a layer.

    Example:
        >>> import keras
        >>> source = keras.layers.BatchNormalization()
        >>> source.build((None, 2))
        >>> jaxbn.interop.from_keras(source).epsilon
        0.001
    """
    if not arguments.is_a(source, "BatchNormalization", "keras"):
        raise TypeError(
            "`source` must be a `keras.layers.BatchNormalization`, got "
            f"{shown(source)}. Pass that layer of the model."
        )
    if source.moving_mean is None:
        raise ValueError(
            f"`source` must be built, got {source!r} without weights. Call it once, or "
            "`source.build(shape)`."
        )
    if source.renorm:
        raise ValueError(
            f"`source` must not renormalize, got renorm={source.renorm!r}. Use "
            "`jaxbn.variants.batch_renorm` and copy its statistics by hand."
        )
    if not source.trainable:
        raise ValueError(
            f"`source` must be trainable, got trainable={source.trainable!r}. Keras "
            "does not train it, which a Layer would: set it to True before, and give "
            "the module that you write it into `frozen=True`."
        )
    names = ("moving_mean", "moving_variance", "gamma", "beta")
    mean, var, *affine = ((f"`source.{k}`", _values(source, k)) for k in names)
    return read(
        dict([mean, var, ("The count", None), *affine]),
        momentum=source.momentum,
        epsilon=source.epsilon,
        axis=source.axis,
    )


def to_keras(layer: Layer) -> list[np.ndarray]:
    """Writes a layer as the weights of a Keras layer.

    Args:
        layer: the layer, without `unbiased` and `debias`, which Keras lacks. Make the
            Keras one with its `momentum`, `epsilon` and `axis`,
            `scale=layer.scale is not None` and `center=layer.bias is not None`.

    Returns:
        Arrays in the order that `set_weights` takes: gamma, beta, mean, variance.

    Raises:
        TypeError: if `layer` is no Layer.
        ValueError: if it has settings that Keras lacks, or no values because it is
            traced.

    Example:
        >>> layer = jaxbn.interop.Layer(jaxbn.init_state(2), jnp.ones(2))
        >>> len(jaxbn.interop.to_keras(layer))
        3
    """
    layer = checked(layer)
    check_average(layer, "Keras")
    check_settings(layer, "in every layer of Keras", unbiased=False, debias=False)
    values = [layer.scale, layer.bias, layer.state.mean, layer.state.var]
    return [np.array(value) for value in values if value is not None]


def check_keras(source: Any, batches: Iterable[Any]) -> Difference:
    """Trains a copy of a Keras layer and the layer read from it side by side.

    Args:
        source: a built `keras.layers.BatchNormalization`; stays as it is.
        batches: NumPy arrays.

    Returns:
        The largest differences.

    Raises:
        TypeError, ValueError: as `from_keras` and `compare`.

    Example:
        >>> import keras
        >>> source = keras.layers.BatchNormalization()
        >>> source.build((None, 2))
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> jaxbn.interop.check_keras(source, [x]).train < 1e-5
        True
    """
    layer = from_keras(source)
    shape = [None] * source.input_spec.ndim
    shape[source.axis] = layer.state.mean.size
    twin = type(source).from_config(source.get_config())
    twin.build(tuple(shape))
    twin.set_weights(source.get_weights())
    peer = Peer(
        lambda x: _array(twin(x, training=True)),
        lambda x: _array(twin(x, training=False)),
        lambda: (_array(twin.moving_mean), _array(twin.moving_variance)),
    )
    return compare(layer, peer, batches)


def _values(source: Any, name: str) -> Any:
    value = getattr(source, name)
    try:
        return None if value is None else _array(value)
    except Exception as error:  # each backend has its own
        raise ValueError(
            f"`source.{name}` must have values, got {shown(value)} without. "
            "Convert it outside of `jax.jit` and `keras.StatelessScope`."
        ) from error


def _array(value: Any) -> np.ndarray:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(value))
