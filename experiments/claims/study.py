"""Measures claims about batch normalization and decides them.

Run: python -m experiments run all --preset quick      (about 50 minutes on 2 cores)
"""

import math
import sys
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from msgspec import Meta

from experiments.claims import chosen, rules_of
from experiments.claims.lab import schema, splits, store
from experiments.claims.lab.experiment import Experiment, Setting, blocks
from experiments.common import checksums, environment, records, remembered
from experiments.common.errors import MAKE_ROOM, UserError, again, writing
from experiments.common.files import check_new
from experiments.common.interrupt import Interrupt
from experiments.common.lock import locked
from experiments.common.options import Positive, Seed, check_limits
from experiments.common.progress import StepProgress
from experiments.common.tables import aligned
from experiments.common.workers import Workers

OUT_OF_TIME = 5


@dataclass(frozen=True)
class RunConfig:
    """Measures claims about batch normalization and decides them."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Experiments, or `all`; a wrong one is answered with all their names."""
    preset: Literal["smoke", "quick", "standard"] = "quick"
    """smoke: does it run; quick: 10 starts; standard: up to 40 while undecided."""
    seed: Seed = 1000
    """Seed of the first starts; 0 is for development, 1000 and up for verdicts."""
    out: Path = Path("runs/claims")
    """Directory of the run, new or empty unless `--resume` is given."""
    max_minutes: Annotated[float | None, Meta(gt=0)] = None
    """Begin nothing new after so many minutes; what finished is kept."""
    data_dir: Path | None = None
    """Directory with the IDX files of MNIST, for `convergence`. Default: MNIST-1D."""
    jobs: Positive = 2
    """Arms measured at the same time; the numbers do not depend on it."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in `--out` with the options it began with."""


def main(config: RunConfig) -> int:
    """Runs the experiments, writes and prints the verdicts, returns the exit code."""
    check_limits(config)
    wanted = chosen(config.names)
    with locked(config.out):
        if config.resume:
            _check_unchanged(config)
        else:
            check_new(config.out)
            _begin(config)
        return _study(config, wanted)


def _study(config: RunConfig, wanted: list[Experiment]) -> int:
    with Interrupt() as interrupt:
        try:
            left = _measure(config, wanted, interrupt)
        except KeyboardInterrupt:
            left = True
            interrupt.requested = True
        with writing(config.out, advice=MAKE_ROOM):
            verdicts = store.write(config.out, wanted, to_json(config))
    print(table(verdicts))
    print(f"\nfiles: {config.out}; page: python -m experiments report {config.out}")
    if not left:
        return 0
    why = "interrupted" if interrupt.requested else "out of time"
    line = again("run", "--out", config.out)
    print(f"{why}; continue with: {line}", file=sys.stderr)
    return 130 if interrupt.requested else OUT_OF_TIME


def stored(config: RunConfig) -> RunConfig:
    """Returns the options that the run in `config.out` began with."""
    path = config.out / "config.json"
    advice = "Start a new run without `--resume`, in another `--out`."
    try:
        checksums.check(config.out, path.name)
        content = schema.load(path)
    except records.DamagedError as error:
        raise UserError(
            f"`--out` must hold a run to resume, but: {error} {advice}"
        ) from error
    names, data_dir = tuple(content["names"]), content["data_dir"]
    if content.pop("rules") != rules_of(chosen(names)):
        raise UserError(
            f"`--out` must hold a run with the present rules, got '{config.out}': "
            f"claims.toml or a claim file is another one than it began with. {advice}"
        )
    given = {"names": names, "data_dir": data_dir and Path(data_dir)}
    return RunConfig(**(content | given), out=config.out)


def to_json(config: RunConfig) -> dict:
    """Returns what `config.json` holds: what decides the numbers."""
    data_dir = config.data_dir and str(config.data_dir)
    kept = {"preset": config.preset, "seed": config.seed, "data_dir": data_dir}
    rules = rules_of(chosen(config.names))
    return {"names": list(config.names), **kept, "rules": rules}


def table(verdicts: dict) -> str:
    """Returns the verdicts as a table for the terminal."""
    lines = []
    for row in verdicts["verdicts"]:
        names = ("claim", "verdict", "published", "in_words", "text")
        lines.append([row[name] for name in names])
    return aligned(["claim", "measured", "published", "effect [95 %]", "text"], lines)


def _begin(config: RunConfig) -> None:
    # Data that cannot be read must not leave a directory that is in use.
    if config.data_dir is not None:
        splits.mnist(config.data_dir, starts=1, seed=config.seed)
    environment.begin(config.out, to_json(config))


def _check_unchanged(config: RunConfig) -> None:
    remembered.check_unchanged(config.out, to_json(stored(config)), to_json(config))
    names = environment.differences(config.out / "environment.json")
    if names:
        raise UserError(
            "`--resume` must continue where the run began, because bits differ "
            f"elsewhere, but {', '.join(names)} changed (environment.json). Continue "
            "it there, or start a new run in another `--out`."
        )


def _measure(config: RunConfig, wanted: list[Experiment], interrupt: Interrupt) -> bool:
    """Measures what is missing, look by look; returns whether something still is."""
    begun, first = time.monotonic(), 0
    limit = math.inf if config.max_minutes is None else 60 * config.max_minutes

    def late() -> bool:
        return interrupt.requested or time.monotonic() - begun > limit

    for end in blocks(config.preset):
        now = wanted
        if first:
            options = to_json(config)
            rows = store.collect(config.out, wanted, options)
            now = store.open_experiments(wanted, rows, options)
        arms = [
            (one, arm, block)
            for one in now
            for block in range(first, end)
            for arm in one.arms
        ]
        if arms and _look(config, arms, late):
            return True
        first = end
    return False


_Task = tuple[Experiment, str, int]


def _look(config: RunConfig, arms: list[_Task], late: Callable[[], bool]) -> bool:
    """Measures the arms that are not there yet; returns whether some are left."""
    todo = [
        one for one in arms if store.load_part(store.part(config.out, *one)) is None
    ]
    before = len(arms) - len(todo)
    running: set[futures.Future] = set()
    with (
        StepProgress(len(arms), begin=before, unit="arms") as progress,
        Workers(config.jobs) as pool,
    ):
        progress.start_clock()
        alone = False
        while todo or running:
            stop = late()
            while (
                todo
                and not stop
                and _may_start(todo[0], running, alone=alone, jobs=config.jobs)
            ):
                experiment, arm, block = todo.pop(0)
                alone = not experiment.exact
                task = pool.submit(_measure_arm, config, experiment.name, arm, block)
                running.add(task)
            if not running:
                break
            # The timeout lets Ctrl-C through.
            done, running = futures.wait(running, 0.5, futures.FIRST_COMPLETED)
            for future in done:
                progress.update(len(arms) - len(todo) - len(running), future.result())
    return bool(todo)


def _may_start(one: _Task, running: set, *, alone: bool, jobs: int) -> bool:
    """Orders the work: what is timed runs alone, everything else beside others."""
    timed = not one[0].exact
    return not running or (len(running) < jobs and not alone and not timed)


def _measure_arm(config: RunConfig, name: str, arm: str, block: int) -> str:
    (experiment,) = chosen((name,))
    setting = Setting(config.preset, config.seed + block, config.data_dir)
    start = time.monotonic()
    rows = experiment.measure(arm, setting)
    path = store.part(config.out, experiment, arm, block)
    with writing(config.out, advice=MAKE_ROOM):
        store.save_part(path, rows, time.monotonic() - start)
    return f"{name}: {arm}"
