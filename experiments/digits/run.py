"""A run of `train`: its arms side by side, trained from one evaluation to the next."""

import functools
import itertools
import time
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.claims.lab import engine
from experiments.claims.lab.plan import Plan
from experiments.common import checkpoint, files
from experiments.common.errors import MAKE_ROOM, writing
from experiments.common.progress import StepProgress
from experiments.digits import results
from experiments.digits.config import TrainConfig, fingerprint
from experiments.digits.summary import Measured

_SECONDS_BETWEEN_CHECKPOINTS = 5.0


class _Arm(NamedTuple):
    given: engine.Given
    advance: Any
    score: Any


class Run:
    """The arms of a run, such as "bn" and "none".

    Attributes:
        config: the options.
        plans: what each arm is.
        states: what each has reached, with leading axes (starts, 1).
        measured: what has come out so far.
    """

    def __init__(self, config: TrainConfig, plans: dict[str, Plan]):
        self.config, self.plans = config, plans
        self.out, self.last = config.out, config.steps
        self.identity = checkpoint.Identity(config.out, fingerprint(config), Measured)
        begun = {arm: engine.begin(plan) for arm, plan in plans.items()}
        self.states = {arm: state for arm, (state, _) in begun.items()}
        self._given = {arm: given for arm, (_, given) in begun.items()}
        self.measured = Measured([], dict.fromkeys(plans, 0.0), {})

    @property
    def step(self) -> int:
        """Steps that every arm has taken."""
        return min(int(state.step.min()) for state in self.states.values())

    def steps(self) -> Generator[int]:
        """Trains; yields the steps taken at the beginning and after each evaluation."""
        step, every = self.step, min(self.config.eval_every, self.last)
        # All arms have the same data and seed.
        order = itertools.islice(
            engine.stream(next(iter(self.plans.values()))), step, None
        )
        with StepProgress(self.last, begin=step) as progress:
            arms = {}
            for name in self.plans:
                progress.say(f"compiling the net with norm {name}")
                arms[name] = self._compiled(name, every)
            if not self.measured.rows:
                for name, arm in arms.items():
                    self._record(name, arm, [None] * self.config.starts)
            progress.start_clock()
            saved = time.monotonic()
            yield step
            while step < self.last:
                count = min(every - step % every, self.last - step)
                rows = np.stack([*itertools.islice(order, count)], axis=1)
                rows = np.pad(rows, [(0, 0), (0, every - count), (0, 0)])
                for name, arm in arms.items():
                    self._advance(name, arm, rows, count)
                step += count
                progress.update(step, self._status())
                late = time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS
                if late or step == self.last:
                    self.save()
                    saved = time.monotonic()
                yield step

    def save(self) -> None:
        """Saves this step and the rows so far."""
        states = jax.device_get(self.states)
        checkpoint.save(self.identity, self.step, states, self.measured, keep=2)
        with writing(self.out, advice=MAKE_ROOM):
            files.write_lines(self.out / "metrics.jsonl", self.measured.rows)

    def finish(self) -> None:
        """Writes and prints the results."""
        weights = {
            arm: sum(leaf[0, 0].size for leaf in jax.tree.leaves(state.model.params))
            for arm, state in self.states.items()
        }
        splits = next(iter(self.plans.values())).splits
        sizes = splits.train.shape[1], splits.test.shape[1]
        with writing(self.out, advice=MAKE_ROOM):
            print(results.write(self.config, self.measured, weights, sizes))

    def _compiled(self, name: str, every: int) -> _Arm:
        state, given, plan = self.states[name], self._given[name], self.plans[name]
        axes = (0, engine.STARTS, 0, None), (0, engine.CELLS, None, None)
        advance = engine.each(functools.partial(engine.advance, plan), *axes)
        score = engine.each(
            functools.partial(engine.score, plan), *(part[:2] for part in axes)
        )
        shape = (len(plan.splits.train), every, plan.batch)
        rows, count = jax.ShapeDtypeStruct(shape, np.int32), np.int32(0)
        begin = time.perf_counter()
        calls = (
            advance.lower(state, given, rows, count).compile(),
            score.lower(state, given).compile(),
        )
        self.measured.compile_seconds[name] = time.perf_counter() - begin
        return _Arm(given, *calls)

    def _advance(self, name: str, arm: _Arm, rows: np.ndarray, count: int) -> None:
        begin = time.perf_counter()
        state, loss = arm.advance(self.states[name], arm.given, rows, np.int32(count))
        self.states[name] = jax.block_until_ready(state)
        self.measured.train_seconds[name] += time.perf_counter() - begin
        self._record(name, arm, loss[:, 0].tolist())

    def _record(self, name: str, arm: _Arm, train_loss: list[float | None]) -> None:
        """Evaluates an arm, and adds one row for each start."""
        state = self.states[name]
        found = {k: v[:, 0].tolist() for k, v in arm.score(state, arm.given).items()}
        for start, loss in enumerate(train_loss):
            row = {
                "arm": name,
                "start": start,
                "step": int(state.step[start, 0]),
                "seconds": round(self.measured.train_seconds[name], 6),
                "train_loss": loss,
                "test_loss": found["test_loss"][start],
                # 342 of 360 are 0.95.
                "test_accuracy": round(found["test_accuracy"][start], 6),
            }
            self.measured.rows.append(files.plain(row))

    def _status(self) -> str:
        """The mean over the starts at the latest evaluation of each arm."""
        latest = self.measured.rows[-len(self.plans) * self.config.starts :]
        shown = []
        for name in self.plans:
            found = [row["test_accuracy"] for row in latest if row["arm"] == name]
            shown.append(f"{name} {100 * sum(found) / len(found):.1f} %")
        return f"test accuracy: {', '.join(shown)}"
