"""Keras layers and their counterparts agree, in both directions."""

import os

import numpy as np
import pytest
from extras import needs

from jaxbn import interop

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = needs("keras")


def layer(axis=-1, **options):
    source = keras.layers.BatchNormalization(axis=axis, momentum=0.9, **options)
    source.build((None, 4, 5, 3) if axis == -1 else (None, 3, 4, 5))
    rng = np.random.default_rng(0)
    source.set_weights([rng.uniform(0.5, 2, w.shape) for w in source.get_weights()])
    return source


def batches(axis=-1):
    rng = np.random.default_rng(1)
    shape = (2, 4, 5, 3) if axis == -1 else (2, 3, 4, 5)
    return [rng.normal(1, 2, shape).astype(np.float32) for _ in range(5)]


@pytest.mark.parametrize(
    ("axis", "affine"),
    [
        (-1, True),
        (1, False),
        pytest.param(-1, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
    ],
)
def test_both_sides_agree_over_five_steps(axis, affine):
    source = layer(axis, scale=affine, center=affine)
    assert max(interop.check_keras(source, batches(axis))) < 3e-6


def test_weights_make_the_round_trip():
    source, target = layer(), keras.layers.BatchNormalization()
    target.build((None, 4, 5, 3))
    target.set_weights(interop.to_keras(interop.from_keras(source)))
    for got, want in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_messages_say_what_to_do():
    for other in (keras.layers.LayerNormalization(), "model.keras", None):
        with pytest.raises(
            TypeError, match=r"`source` must be a `keras.layers.BatchNor"
        ):
            interop.from_keras(other)
    broken = layer()
    broken.moving_variance.assign([1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match=r"`source.moving_variance` must not be neg"):
        interop.check_keras(broken, batches())
    with pytest.raises(ValueError, match="`source` must be built"):
        interop.from_keras(keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match="`source` must not renormalize"):
        interop.from_keras(layer(renorm=True))
    with pytest.raises(ValueError, match=r"`source` must be trainable, .*frozen=Tr"):
        interop.from_keras(layer(trainable=False))
