"""The bounds of batch renormalization as functions of the step."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbn.core import options
from jaxbn.core.values import is_traced


@dataclasses.dataclass(frozen=True)
class _Ramp:
    """A line between two bounds; a class, so that it pickles and equals another one."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, step: int | Array) -> Array:
        """Returns the bound at a step."""
        hint = "It is the number of updates."
        options.numbers("step", step, lambda v: v >= 0, "not negative", hint=hint)
        past = jnp.asarray(step, jnp.float32) - self.start
        share = past / (self.end - self.start)
        return self.low + (self.high - self.low) * jnp.clip(share, 0, 1)


class RenormSchedule(NamedTuple):
    """Bounds as functions of the step, as schedules are in optax.

    Attributes:
        r_max: step -> bound of r, at least 1.
        d_max: step -> bound of |d|, at least 0.
    """

    r_max: Callable[[int | Array], Array]
    d_max: Callable[[int | Array], Array]


def renorm_schedule(
    *,
    start: int = 5_000,
    r_end: int = 40_000,
    d_end: int = 25_000,
    r_max: float = 3.0,
    d_max: float = 5.0,
) -> RenormSchedule:
    """The bounds of the paper: batch normalization first, then linearly to the limits.

    r_max is 1 and d_max 0 until `start`; r_max grows linearly to its limit at `r_end`,
    d_max at `d_end`.

    Args:
        start: the step up to which it is plain batch normalization.
        r_end, d_end: the steps at which the limits are reached.
        r_max, d_max: the limits.

    Returns:
        Two functions of the step, which may be traced.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if it is out of range, or an end not after `start`.

    Reference:
        Ioffe, Batch Renormalization, 2017. https://arxiv.org/abs/1702.03275

    Example:
        >>> schedule = renorm_schedule()
        >>> float(schedule.r_max(5_000)), float(schedule.r_max(40_000))
        (1.0, 3.0)
        >>> float(schedule.d_max(15_000))
        2.5
    """

    def number(name, value, least):
        return options.number(
            name,
            value,
            lambda v: np.isfinite(v) & (v >= least),
            f"finite and at least {least}",
            hint="The defaults are those of the paper.",
        )

    start = number("start", start, 0)
    after = 1 if is_traced(start) else start + 1

    r_max, r_end = number("r_max", r_max, 1), number("r_end", r_end, after)
    d_max, d_end = number("d_max", d_max, 0), number("d_end", d_end, after)
    return RenormSchedule(
        _Ramp(1.0, r_max, start, r_end), _Ramp(0.0, d_max, start, d_end)
    )
