"""Compares training with and without a normalization, from the same start.

Run: python -m experiments train      (about a minute on 2 cores)
"""

import shlex
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from experiments.common import (
    checkpoint,
    checksums,
    environment,
    files,
    processes,
    remembered,
)
from experiments.common.data import Data, load
from experiments.common.errors import MAKE_ROOM, writing
from experiments.common.files import check_new
from experiments.common.interrupt import Interrupt
from experiments.common.lock import locked
from experiments.common.progress import StepProgress
from experiments.digits import results
from experiments.digits.config import (
    TrainConfig,
    check,
    fingerprint,
    stored,
    to_json,
)
from experiments.digits.loop import Loop, Scores, TrainState, optimizer
from experiments.digits.run import Measured, Run
from experiments.nets.small import ResidualNet

__all__ = ["TrainConfig", "main", "stored"]

_SECONDS_BETWEEN_CHECKPOINTS = 5.0


def main(config: TrainConfig) -> int:
    """Trains, writes and prints the results, and returns the exit code."""
    check(config)
    with locked(config.out):
        if config.resume:
            remembered.check_unchanged(
                config.out, to_json(stored(config)), to_json(config)
            )
        else:
            check_new(config.out)
        data = load(config.data, starts=config.starts, seed=config.seed)
        if not config.resume:
            environment.begin(config.out, to_json(config))
        loops = make_loops(config, data)
        with Interrupt() as interrupt:
            return _session(config, data, loops, interrupt)


def _session(
    config: TrainConfig, data: Data, loops: dict[str, Loop], interrupt: Interrupt
) -> int:
    run = _begin(config, loops)
    if run.step == config.steps and results.written(config.out):
        print(f"nothing left to do: the run took all of its {config.steps} steps")
        return 0
    try:
        _train(config, loops, run, interrupt)
    except KeyboardInterrupt:
        return _interrupted(config)
    if run.step < config.steps:
        return _interrupted(config)
    with writing(config.out, advice=MAKE_ROOM):
        print(results.write(config, run, data))
    return 0


def make_loops(config: TrainConfig, data: Data) -> dict[str, Loop]:
    """Returns the loop of each arm; the arms differ in the normalization alone."""
    tx = optimizer(config.optimizer, config.lr)
    arms = dict.fromkeys((config.norm, "none"))
    return {norm: Loop(ResidualNet(norm), tx, data, config.batch_size) for norm in arms}


def _begin(config: TrainConfig, loops: dict[str, Loop]) -> Run:
    saved = None
    if config.resume:
        like = {arm: loop.shapes() for arm, loop in loops.items()}
        as_numpy = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        saved = checkpoint.restore_newest(_identity(config), as_numpy)
    if saved is None:
        run = Run({arm: loop.init(config.seed) for arm, loop in loops.items()})
        _save(config, run)
        return run
    run = Run(saved.state, **msgspec.structs.asdict(saved.data))
    unfinished = run.step < config.steps
    if unfinished and not environment.is_that_of(config.out / "environment.json"):
        note = "this environment differs from environment.json: last bits may differ"
        print(f"note: {note}", file=sys.stderr)
    return run


def _identity(config: TrainConfig) -> checkpoint.Identity[Measured]:
    return checkpoint.Identity(config.out, fingerprint(config), Measured)


def _save(config: TrainConfig, run: Run) -> None:
    data = Measured(run.rows, run.train_seconds, run.compile_seconds)
    states = jax.device_get(run.states)
    try:
        checkpoint.save(_identity(config), run.step, states, data, keep=2)
        with writing(config.out, advice=MAKE_ROOM):
            files.write_lines(config.out / "metrics.jsonl", run.rows)
    except checkpoint.SaveError as error:
        # Orbax's threads would complain, at length, of an orderly end.
        processes.leave(str(error), code=2)
        raise


def _interrupted(config: TrainConfig) -> int:
    print(
        f"interrupted at step {checksums.steps(config.out)[0]}; continue with: "
        f"python -m experiments train --resume --out {shlex.quote(str(config.out))}",
        file=sys.stderr,
    )
    return 130


class _Calls(NamedTuple):
    advance: Callable[[TrainState, jax.Array], tuple[TrainState, jax.Array]]
    evaluate: Callable[[TrainState], Scores]


def _train(
    config: TrainConfig, loops: dict[str, Loop], run: Run, interrupt: Interrupt
) -> None:
    with StepProgress(config.steps, begin=run.step) as progress:
        calls = {}
        for arm, loop in loops.items():
            progress.say(f"compiling the net with norm {arm}")
            calls[arm] = _compile(run, arm, loop)
        if not run.rows:
            for arm in loops:
                run.record(arm, calls[arm].evaluate(run.states[arm]), None)
        progress.start_clock()
        saved = time.monotonic()
        while run.step < config.steps and not interrupt.requested:
            stop = run.step - run.step % config.eval_every + config.eval_every
            for arm in loops:
                _advance(run, arm, calls[arm], min(stop, config.steps))
            progress.update(run.step, _status(run, loops))
            late = time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS
            if late or interrupt.requested or run.step == config.steps:
                _save(config, run)
                saved = time.monotonic()


def _compile(run: Run, arm: str, loop: Loop) -> _Calls:
    state, begin = run.states[arm], time.perf_counter()
    advance = Loop.advance.lower(loop, state, jnp.int32(0)).compile()
    evaluate = Loop.evaluate.lower(loop, state).compile()
    run.compile_seconds[arm] = time.perf_counter() - begin
    return _Calls(advance, evaluate)


def _advance(run: Run, arm: str, calls: _Calls, stop: int) -> None:
    begin = time.perf_counter()
    state, loss = calls.advance(run.states[arm], jnp.int32(stop))
    run.states[arm] = jax.block_until_ready(state)
    spent = time.perf_counter() - begin
    run.train_seconds[arm] = run.train_seconds.get(arm, 0.0) + spent
    run.record(arm, calls.evaluate(state), loss.tolist())


def _status(run: Run, loops: dict[str, Loop]) -> str:
    scores = (f"{arm} {100 * run.accuracy(arm):.1f} %" for arm in loops)
    return "test accuracy: " + ", ".join(scores)
