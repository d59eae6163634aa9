"""Times of several functions that run in turns, in random order."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

LEAST, MOST = 5, 25
# Seconds between two: threads that one library leaves waiting go to sleep meanwhile.
_PAUSE = 0.02
# Seconds between two whose kernels are told apart by it, and how often that may fail.
_APART, _ATTEMPTS = 0.005, 3


class Run(NamedTuple):
    """One of those that take turns.

    Attributes:
        start: starts it once, and returns a result that need not be there yet.
        program: what JAX compiled; None of another library.
        wait: waits for such a result and all before it, and returns it.
    """

    start: Callable[[], Any]
    program: jax.stages.Compiled | None = None
    wait: Callable[[Any], Any] = jax.block_until_ready

    def __call__(self) -> Any:
        return self.wait(self.start())


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


def back_to_back(
    runs: Mapping[str, Run], *, rounds: int, span: float
) -> dict[str, list[float]]:
    """Returns the milliseconds of every run in every round, started without waiting.

    A GPU works while the host starts the next one, as in a training loop.

    Args:
        runs: what is run, by name.
        rounds: how many, each in a random order.
        span: milliseconds of one turn, in which a run is started as often as fits.
    """
    generator = np.random.default_rng(0)
    repeated, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        one = 1e3 * (time.perf_counter() - start)
        repeated[name] = min(200, max(3, round(span / one)))
    for _ in range(rounds):
        for name in generator.permutation(list(runs)):
            start = time.perf_counter()
            for _ in range(repeated[name] - 1):
                runs[name].start()
            runs[name]()
            times[name].append(1e3 * (time.perf_counter() - start) / repeated[name])
    return times


def of_kernels(runs: Mapping[str, Run], *, rounds: int) -> dict[str, list[float]]:
    """Returns the milliseconds that the kernels of every run take on a GPU.

    Small ones take less than the host needs to start them, which counts in no layer of
    a network whose program is started once. JAX's profiler sees those of every library;
    whose they are is told by the pauses between the runs.

    Args:
        runs: what is run, by name.
        rounds: how many, each in a random order.

    Raises:
        RuntimeError: the profiler did not see every run.
    """
    generator = np.random.default_rng(0)
    for run in runs.values():
        run()  # compiles
        run()
    order = [n for _ in range(rounds) for n in generator.permutation(list(runs))]
    found = []
    for _ in range(_ATTEMPTS):
        found = _profiled([runs[name] for name in order])
        if len(found) == len(order):
            break
    else:
        raise RuntimeError(
            f"The profiler must see {len(order)} runs, got {len(found)}. Measure again."
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, value in zip(order, found, strict=True):
        times[name].append(value)
    return times


def _profiled(runs: Sequence[Run]) -> list[float]:
    """The milliseconds of the kernels of each run, if the profiler saw them all."""
    options = jax.profiler.ProfileOptions()
    # What the host does is not looked at, and takes seconds to write.
    options.host_tracer_level = options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for run in runs:
                time.sleep(_APART)
                run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return _sums_between_pauses(jax.profiler.ProfileData.from_file(str(path)))


def _sums_between_pauses(profile: Any) -> list[float]:
    """The milliseconds of the kernels between every two pauses."""
    kernels = sorted(
        (event.start_ns, event.duration_ns)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if "Stream" in line.name
        for event in line.events
    )
    sums, end = [], -math.inf
    for start, duration in kernels:
        if start - end > 5e8 * _APART:  # half of it, in nanoseconds
            sums.append(0.0)
        sums[-1] += 1e-6 * duration
        end = max(end, start + duration)
    return sums


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles."""
    quartiles = np.percentile(values, (25, 50, 75))
    names = ("lower quartile", "median", "upper quartile")
    return dict(zip(names, map(float, quartiles), strict=True))
