"""Optimizer helpers: what to decay, when to step, and when statistics are complete."""

from jaxbn.optim.accumulate import accumulate, init_accumulation
from jaxbn.optim.decay import decay_scale, weight_decay_mask, zero_last_scale
from jaxbn.optim.finite import keep_finite
from jaxbn.optim.frozen import frozen_mask

__all__ = [
    "accumulate",
    "decay_scale",
    "frozen_mask",
    "init_accumulation",
    "keep_finite",
    "weight_decay_mask",
    "zero_last_scale",
]
