"""Times of several functions that run in turns, in random order."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

LEAST, MOST = 5, 25
# Seconds between two: threads that one library leaves waiting go to sleep meanwhile.
_PAUSE = 0.02


class Run(NamedTuple):
    """One of those that take turns.

    Attributes:
        call: runs it once, and waits for the result.
        program: what JAX compiled; None of another library.
    """

    call: Callable[[], object]
    program: jax.stages.Compiled | None = None

    def __call__(self) -> object:
        return self.call()


def in_turns(
    functions: Mapping[str, Callable[[], object]], *, seconds: float, warm: bool = False
) -> dict[str, list[float]]:
    """Returns the milliseconds of every function in every round.

    Rounds are repeated for about `seconds`, at least 5 and at most 25 times, each in a
    random order, so that no function always follows the same one.

    Args:
        functions: what is run, by name.
        seconds: time of all rounds.
        warm: runs each once in its turn before it is timed. After a pause a processor
            needs about 0.3 ms to wake up, which is more than a small layer takes.
    """
    generator = np.random.default_rng(0)
    for run in functions.values():
        run()  # compiles
        run()
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for number in range(MOST):
        if number >= LEAST and time.perf_counter() - began > seconds:
            break
        for name in generator.permutation(list(functions)):
            time.sleep(_PAUSE)
            if warm:
                functions[name]()
            start = time.perf_counter()
            functions[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles."""
    quartiles = np.percentile(values, (25, 50, 75))
    names = ("lower quartile", "median", "upper quartile")
    return dict(zip(names, map(float, quartiles), strict=True))
