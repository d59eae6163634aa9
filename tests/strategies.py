"""Hypothesis strategies: shapes, axes, dtypes, masks and badly scaled values.

Shapes come from a short list, so that compiled programs are found again.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import reference
from hypothesis import strategies as st

LAYOUTS = (
    ((7, 3), -1),
    ((1, 3), 1),
    ((3, 11), 0),
    ((2, 5, 3), -1),
    ((2, 3, 5), 1),
    ((3, 2, 2, 4), (1, -1)),
    ((41, 1), -1),
)
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
FLOATS = (*HALVES, np.dtype(np.float32))
ALL_FLOATS = (*FLOATS, np.dtype(np.float64))
seeds = st.integers(0, 2**16)
momenta = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999])


class Case(NamedTuple):
    """A batch for one call: `jnp` only sees it inside the test, for the sake of x64."""

    x: np.ndarray
    axis: Any
    where: np.ndarray | None

    @property
    def options(self):
        where = None if self.where is None else jnp.asarray(self.where)
        return {"axis": self.axis, "where": where}

    @property
    def expected(self):
        return {"axis": self.axis, "where": self.where}

    @property
    def features(self):
        axes = sorted(np.atleast_1d(self.axis) % self.x.ndim)
        return tuple(self.x.shape[a] for a in axes)

    @property
    def rows(self):
        return self.x.size // math.prod(self.features)

    @property
    def error(self):
        """The relative error allowed to a statistic."""
        return reference.statistics_error(self.rows, self.x.dtype)


@st.composite
def cases(draw, dtypes=FLOATS, masked=None):
    """A batch whose channels have very different means and spreads."""
    shape, axis = draw(st.sampled_from(LAYOUTS))
    dtype = draw(st.sampled_from(dtypes))
    generator = np.random.default_rng(draw(seeds))
    largest = 2.0 if dtype == np.float16 else 4.0
    case = Case(np.empty(shape, dtype), axis, None)
    offset = 10 ** generator.uniform(-2, largest, case.features)
    spread = 10 ** generator.uniform(-2, 2, case.features)
    sign = generator.choice([-1, 0, 1], case.features)
    over = reference.rows(case.x, axis)
    x = generator.standard_normal(shape) * np.expand_dims(spread, over)
    x = (x + np.expand_dims(sign * offset, over)).astype(dtype)
    where = None
    if draw(st.booleans()) if masked is None else masked:
        ones = draw(
            st.sampled_from(
                [(), (0,), sorted({a % len(shape) for a in np.atleast_1d(axis)})]
            )
        )
        kept = [1 if i in ones else n for i, n in enumerate(shape)]
        where = generator.random(kept) < draw(st.sampled_from([0.3, 0.7, 0.95]))
    return Case(x, axis, where)
