"""The data of the library. Imports nothing from jaxbn."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import Array, export

AxisName = str | Sequence[str]
"""One mesh or vmap axis, or several, as in `jax.lax.psum`."""

AxisGroups = Sequence[Sequence[int]]
"""Positions along `axis_name` that share statistics, for example [[0, 1], [2, 3]]."""

Activation = str | Callable[[Array], Array] | None
"""Applied after normalization: a name, an elementwise function, or nothing."""


class Moments(NamedTuple):
    """Count, mean and spread of the values seen in each channel.

    These three, unlike a variance, can be merged exactly for parts of any size.

    Attributes:
        count: number of values; the shape of the feature axes, float32 (float64 for
            float64 input).
        mean: their mean; same shape, at least float32, complex for complex input.
        m2: sum of squared distances to `mean`; same shape, real, never negative.
    """

    count: Array
    mean: Array
    m2: Array


class BatchNormState(NamedTuple):
    """Running statistics, ready for use at inference: nothing has to be divided out.

    Attributes:
        mean: running mean; the shape of the feature axes, float32.
        var: running variance; same shape, float32.
        count: number of updates each channel has had; same shape, float32.
    """

    mean: Array
    var: Array
    count: Array


# For programs that take or return them.
for _record in (Moments, BatchNormState):
    export.register_namedtuple_serialization(
        _record, serialized_name=f"jaxbn.{_record.__name__}"
    )
