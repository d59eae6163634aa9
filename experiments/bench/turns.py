"""Times of several functions that run in turns, in random order."""

import time
from collections.abc import Callable, Mapping

import numpy as np

LEAST, MOST = 5, 25
# Seconds between two: threads that one library leaves waiting go to sleep meanwhile.
_PAUSE = 0.02


def in_turns(
    functions: Mapping[str, Callable[[], object]], *, seconds: float
) -> dict[str, dict[str, float]]:
    """Median and quartiles of every function, in milliseconds.

    Rounds are repeated for about `seconds`, at least 5 and at most 25 times, each in a
    random order, so that no function always follows the same one.
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
            start = time.perf_counter()
            functions[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _spread(values) for name, values in times.items()}


def _spread(values: list[float]) -> dict[str, float]:
    quartiles = np.percentile(values, (25, 50, 75))
    names = ("lower quartile", "median", "upper quartile")
    return dict(zip(names, map(float, quartiles), strict=True))
