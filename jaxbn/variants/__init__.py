"""Batch normalization for special cases: small batches, domains, time steps.

ghost      statistics of groups of examples
renorm     batch renormalization; schedule has the bounds of its paper
timestep   statistics per step of a sequence
domains    statistics per domain
blend      inference that blends in the statistics of each example
settings   the options of a module, whatever its kind
hooks      the calls that the modules of linen and nnx make for each of them
"""

from jaxbn.variants.blend import eval_blend, fit_eval_blend
from jaxbn.variants.domains import (
    domain_batch_norm,
    domain_batch_norm_inference,
    init_domain_state,
    strip_domain,
)
from jaxbn.variants.ghost import ghost_batch_norm
from jaxbn.variants.renorm import (
    RenormState,
    batch_renorm,
    batch_renorm_inference,
    init_renorm_state,
)
from jaxbn.variants.schedule import RenormSchedule, renorm_schedule
from jaxbn.variants.timestep import (
    init_timestep_state,
    timestep_batch_norm,
    timestep_batch_norm_inference,
)

__all__ = [
    "RenormSchedule",
    "RenormState",
    "batch_renorm",
    "batch_renorm_inference",
    "domain_batch_norm",
    "domain_batch_norm_inference",
    "eval_blend",
    "fit_eval_blend",
    "ghost_batch_norm",
    "init_domain_state",
    "init_renorm_state",
    "init_timestep_state",
    "renorm_schedule",
    "strip_domain",
    "timestep_batch_norm",
    "timestep_batch_norm_inference",
]
