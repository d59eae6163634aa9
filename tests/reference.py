"""Batch normalization in float64 NumPy, written from the papers.

Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167, with a
mask. Nothing here is shared with the library.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np


class Moments(NamedTuple):
    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray


class State(NamedTuple):
    mean: np.ndarray
    var: np.ndarray
    count: np.ndarray


ACTIVATIONS = {
    None: lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "relu6": lambda z: np.clip(z, 0, 6),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
}


def wide(x):
    """`x` in float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def rows(x, axis):
    features = np.atleast_1d(axis) % x.ndim
    return tuple(i for i in range(x.ndim) if i not in features)


def along(vector, x, axis):
    """A vector of the feature axes with the rank of `x`."""
    return np.expand_dims(wide(vector), rows(x, axis))


def moments(x, *, axis=-1, where=None):
    x = wide(x)
    valid = np.broadcast_to(True if where is None else where, x.shape)
    over = rows(x, axis)
    count = valid.sum(over, dtype=np.float64)
    mean = np.where(valid, x, 0).sum(over) / np.maximum(count, 1)
    distance = np.where(valid, x - along(mean, x, axis), 0)
    return Moments(count, mean, (np.abs(distance) ** 2).sum(over))


def normalize(x, mean, var, scale=None, bias=None, *, axis=-1, epsilon=1e-5):
    x = wide(x)
    y = (x - along(mean, x, axis)) / np.sqrt(along(var, x, axis) + epsilon)
    y = y if scale is None else y * along(scale, x, axis)
    return y if bias is None else y + along(bias, x, axis)


def batch_norm(x, scale=None, bias=None, *, axis=-1, where=None, epsilon=1e-5):
    batch = moments(x, axis=axis, where=where)
    var = batch.m2 / np.maximum(batch.count, 1)
    return normalize(x, batch.mean, var, scale, bias, axis=axis, epsilon=epsilon)


def gradients(x, ct, scale, *, axis=-1, where=None, epsilon=1e-5):
    """The gradients of sum(y * ct) with respect to `x`, `scale` and `bias`.

    Section 3 of the paper, in its simplified form. Masked positions are normalized too,
    so they give to the sums; only valid positions receive from the statistics.
    """
    x, ct, over = wide(x), wide(ct), rows(x, axis)
    count, mean, m2 = moments(x, axis=axis, where=where)
    valid = np.broadcast_to(True if where is None else where, x.shape)
    n = along(np.maximum(count, 1), x, axis)
    inverse = 1 / np.sqrt(along(m2, x, axis) / n + epsilon)
    normal = (x - along(mean, x, axis)) * inverse
    d_bias = ct.sum(over, keepdims=True)
    d_scale = (ct * normal).sum(over, keepdims=True)
    dx = (
        inverse
        * along(scale, x, axis)
        * (ct - np.where(valid, (d_bias + normal * d_scale) / n, 0))
    )
    return dx, d_scale.squeeze(over), d_bias.squeeze(over)


def running(batches, *, momentum=0.99, debias=True, unbiased=False):
    """The running statistics after `batches`, from mean 0 and variance 1.

    The de-biased average is the one of Adam (Kingma and Ba 2015): an average that
    starts at zero, divided by the sum of its weights.
    """
    mean, var = 0.0, 0.0 if debias else 1.0
    for t, (count, batch_mean, m2) in enumerate(batches, start=1):
        keep = momentum if momentum is not None else (t - 1) / t
        mean = keep * mean + (1 - keep) * batch_mean
        var = keep * var + (1 - keep) * m2 / (count - 1 if unbiased else count)
    if debias and momentum is not None:
        mean, var = (value / (1 - momentum**t) for value in (mean, var))
    return State(mean, var, np.full_like(batches[0].mean.real, len(batches)))


def unit_roundoff(dtype):
    """Half the distance from one to the next number of the type."""
    return float(ml_dtypes.finfo(np.dtype(dtype)).eps) / 2


def statistics_roundoff(dtype):
    """The unit roundoff of the type that statistics of `dtype` are computed in."""
    wide_type = np.promote_types(np.zeros((), dtype).real.dtype, np.float32)
    return unit_roundoff(wide_type)


def statistics_error(n, dtype):
    """The relative error allowed to a sum of n terms about an accepted center.

    A center may be 4 standard deviations from the mean: the sum of squares about it is
    then 1 + 4^2 times that about the mean, and its roundings, sqrt(n) of the sum and a
    handful of each term, are as many times larger.
    """
    return (1 + 4**2) * (4 + np.sqrt(n)) * statistics_roundoff(dtype)
