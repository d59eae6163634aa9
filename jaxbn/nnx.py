"""Batch normalization as a flax.nnx module; the mathematics is `jaxbn.batch_norm`.

Drop-in for `flax.nnx.BatchNorm`: the same arguments, variables and result types.

    >>> from flax import nnx
    >>> layer = jaxbn.nnx.BatchNorm(1, activation="relu", rngs=nnx.Rngs(0))
    >>> x = jnp.array([[1.0], [3.0]])
    >>> layer(x).round(3)
    Array([[0.],
           [1.]], dtype=float32)
    >>> layer.mean[...].round(3)
    Array([0.02], dtype=float32)
    >>> layer.eval()
    >>> (layer(x) > 0).all()
    Array(True, dtype=bool)
"""

from jaxbn.nnx_base import Layer
from jaxbn.nnx_models import convert, freeze, reset_statistics
from jaxbn.nnx_variants import (
    BatchRenorm,
    DomainBatchNorm,
    EvalBlendBatchNorm,
    GhostBatchNorm,
    TimestepBatchNorm,
)
from jaxbn.variants import hooks

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "DomainBatchNorm",
    "EvalBlendBatchNorm",
    "GhostBatchNorm",
    "TimestepBatchNorm",
    "convert",
    "freeze",
    "reset_statistics",
]


class BatchNorm(hooks.Ordinary, Layer):
    """Batch normalization with running statistics in `nnx.BatchStat` variables.

    Computes `jaxbn.batch_norm` in training and `jaxbn.batch_norm_inference` with
    running averages, in at least float32, and rounds once, to the type of the result.

    Unlike in Flax: masks and uneven replicas are weighted by the values that count, and
    a mask must be boolean; `axis_index_groups` works wherever `axis_name` does; neither
    `x` nor a running statistic is rounded to `dtype` before it is used; no gradient
    flows into running statistics.

    Its arguments are those of every layer here, see `jaxbn.nnx_base.Layer`: first those
    of Flax, then ours.
    """

    __call__ = Layer.__call__
