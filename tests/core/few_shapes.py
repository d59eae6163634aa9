"""Batches of a short list of shapes, types and shapes of masks.

Only the values are drawn, so all tests of a function share one program for each entry
of the list. `strategies.cases` draws from the product instead.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import reference
import strategies
from hypothesis import strategies as st

F16, BF16, F32, F64 = map(
    np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
)


class Kind(NamedTuple):
    """What a program depends on; the mask has size 1 along `ones`."""

    shape: tuple[int, ...]
    axis: Any
    dtype: np.dtype
    ones: tuple[int, ...]


KINDS = (
    Kind((7, 3), -1, F32, ()),
    Kind((1, 3), 1, BF16, (0,)),
    Kind((3, 11), 0, F16, (0,)),
    Kind((2, 5, 3), -1, BF16, (2,)),
    Kind((2, 3, 5), 1, F16, (1,)),
    Kind((3, 2, 2, 4), (1, -1), F32, (1, 3)),
    Kind((3, 2, 2, 4), (1, -1), F64, ()),
    Kind((41, 1), -1, F64, (0,)),
)


def batch(kind, generator):
    """Values whose channels have very different means and spreads."""
    shape, axis, dtype, _ = kind
    features = strategies.Case(np.empty(shape), axis, None).features
    largest = 2.0 if dtype == np.float16 else 4.0
    offset = 10 ** generator.uniform(-2, largest, features)
    spread = 10 ** generator.uniform(-2, 2, features)
    offset = offset * generator.choice([-1, 0, 1], features)
    over = reference.rows(np.empty(shape), axis)
    x = generator.standard_normal(shape) * np.expand_dims(spread, over)
    return (x + np.expand_dims(offset, over)).astype(dtype)


@st.composite
def cases(draw, *, masked=None, dtypes=strategies.FLOATS):
    """A case of one of the kinds that have one of the types."""
    kind = draw(st.sampled_from([k for k in KINDS if k.dtype in dtypes]))
    generator = np.random.default_rng(draw(strategies.seeds))
    x, where = batch(kind, generator), None
    if draw(st.booleans()) if masked is None else masked:
        kept = [1 if i in kind.ones else n for i, n in enumerate(kind.shape)]
        where = generator.random(kept) < draw(st.sampled_from([0.3, 0.7, 0.95]))
    return strategies.Case(x, kind.axis, where)
