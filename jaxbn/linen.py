"""Batch normalization as a flax.linen module; the mathematics is `jaxbn.batch_norm`.

Drop-in for `flax.linen.BatchNorm`: the same arguments, variables and result types.

    >>> layer = jaxbn.linen.BatchNorm(use_running_average=False, activation="relu")
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> y, changed = layer.apply(variables, x, mutable="batch_stats")
    >>> y.round(3)
    Array([[0.],
           [1.]], dtype=float32)
    >>> changed["batch_stats"]["mean"].round(3)
    Array([0.02], dtype=float32)
"""

from jaxbn.linen_base import Layer
from jaxbn.linen_models import converting, reset_statistics
from jaxbn.linen_variants import (
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
    "converting",
    "reset_statistics",
]


class BatchNorm(hooks.Ordinary, Layer):
    """Batch normalization with running statistics in the collection "batch_stats".

    Computes `jaxbn.batch_norm` in training and `jaxbn.batch_norm_inference` with
    running averages, in at least float32, and rounds once, to the type of the result.

    Unlike in Flax: masks and uneven replicas are weighted by the values that count;
    `axis_index_groups` works wherever `axis_name` does; statistics cannot go negative
    or non-finite by cancellation; no gradient flows into running statistics; a mask
    must be boolean.

    Its attributes are those of every layer here, see `jaxbn.linen_base.Layer`: first
    those of Flax in the same order, then ours, by name only.
    """
