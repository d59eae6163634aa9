"""Batch normalization for special cases: small batches, domains, time steps."""

from jaxbn.variants import (
    domains,
    eval_blend,
    ghost,
    lstm,
    renorm,
    renorm_schedule,
    timestep,
)

__all__ = [
    "domains",
    "eval_blend",
    "ghost",
    "lstm",
    "renorm",
    "renorm_schedule",
    "timestep",
]
