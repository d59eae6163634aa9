"""Optimizer helpers: what to decay, when to step, and when statistics are complete."""

from jaxbn.optim.accumulate import accumulate as accumulate
from jaxbn.optim.accumulate import init_accumulation as init_accumulation
from jaxbn.optim.decay import decay_scale as decay_scale
from jaxbn.optim.decay import weight_decay_mask as weight_decay_mask
from jaxbn.optim.decay import zero_last_scale as zero_last_scale
from jaxbn.optim.finite import keep_finite as keep_finite
