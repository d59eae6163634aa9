"""Batch normalization for special cases: small batches, domains, time steps."""

from jaxbn.variants import domains as domains
from jaxbn.variants import eval_blend as eval_blend
from jaxbn.variants import ghost as ghost
from jaxbn.variants import lstm as lstm
from jaxbn.variants import renorm as renorm
from jaxbn.variants import renorm_schedule as renorm_schedule
from jaxbn.variants import timestep as timestep
