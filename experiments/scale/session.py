"""A session of training: the loop over steps, with its logs, scores and saves."""

import time
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import checkpoint, checksums, files, processes
from experiments.common.errors import MAKE_ROOM, UserError, writing
from experiments.common.progress import StepProgress
from experiments.scale import pipeline
from experiments.scale.config import ScaleConfig
from experiments.scale.deadline import Deadline
from experiments.scale.layout import Layout
from experiments.scale.memory import process_peak_bytes, report
from experiments.scale.metrics import Writer
from experiments.scale.network import Variables
from experiments.scale.optimizer import learning_rate
from experiments.scale.options import Beside, identity, profiled_steps
from experiments.scale.profile import Profile
from experiments.scale.sources import Source, open_source
from experiments.scale.step import Metrics, Step, Sums, TrainState, evaluate, means

RESULTS = ("summary.json", "metrics.jsonl", "speed.jsonl")
"""Files that stay as they are when a run has taken all of its steps."""


class Streams(NamedTuple):
    """The data of this process, opened: endless training batches, evaluation batches.

    Attributes:
        train: an iterator whose position can be stored and set.
        evaluation: an iterable, one pass.
        sources: what both are read from.
    """

    train: Any
    evaluation: Iterable[dict]
    sources: tuple[Source, Source]


class Run(NamedTuple):
    """The constants of a session.

    Attributes:
        config: the options.
        layout: the devices.
        step: what a training step is made of.
        group: examples that share statistics, None for the whole batch.
    """

    config: ScaleConfig
    layout: Layout
    step: Step
    group: int | None

    @property
    def stream(self) -> dict[str, int]:
        """The part of each batch that this process reads."""
        return {"process": jax.process_index(), "processes": jax.process_count()}

    def open_data(self) -> Streams:
        """Opens the data; `UserError` if they cannot be read."""
        data, size = self.config.data, self.config.optimizer.batch_size
        sources = (open_source(data, split="train"), open_source(data, split="eval"))
        train = pipeline.train_batches(
            data,
            batch_size=size,
            seed=self.config.seed,
            source=sources[0],
            **self.stream,
        )
        evaluation = pipeline.eval_batches(
            data, batch_size=size, source=sources[1], **self.stream
        )
        return Streams(train, evaluation, sources)


class Position(NamedTuple):
    """The position of a run: its state, and the batches that follow."""

    state: TrainState
    batches: Any


class Session:
    """The steps of a run, as `loop.complete` takes them."""

    def __init__(
        self,
        run: Run,
        position: Position,
        evaluation: Iterable[dict],
        deadline: Deadline,
        writer: Writer,
        progress: StepProgress,
    ):
        self.run, self.evaluation, self.deadline = run, evaluation, deadline
        self.state, self.batches = position
        self.writer, self.progress = writer, progress
        self.rate = learning_rate(run.config.optimizer)
        self.first = int(self.state.step)
        self.out, self.last = run.config.out, run.config.optimizer.steps

    def steps(self) -> Generator[int]:
        """Yields the number of steps taken, after each of them."""
        config, layout = self.run.config, self.run.layout
        self.progress.say("compiling")
        step_once = layout.spread(self.run.step, self.state)
        self.score = layout.reduce(self._sums)
        self._clock(self.first)
        profile = Profile(config.out, profiled_steps(config.session.profile))
        with profile:
            yield from self._steps(step_once, profile)

    def _steps(self, step_once: Any, profile: Profile) -> Generator[int]:
        config, late = self.run.config, None
        for step in range(self.first + 1, self.last + 1):
            profile.before(step)
            batch = self._next()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                if step == self.first + 1:
                    step_once = report(config.out, step_once, self.state, batch)
                self.state, metrics = step_once(self.state, batch)
            # The one before: reading and computing go on side by side.
            self._stop_if_not_finite((late or metrics).in_a_row.item())
            late = metrics
            if step == self.first + 1:
                self._clock(step)
                self.progress.start_clock()
            self.deadline.beat()
            self._after(step, metrics)
            profile.after(step, metrics)
            yield step

    def save(self) -> None:
        """Saves this step."""
        step, keep = int(self.state.step), self.run.config.session.keep
        data = Beside(self.batches.get_state(), self.run.group, self.writer.written())
        with self.deadline.phase("saving a checkpoint"):
            checkpoint.save(
                identity(self.run.config), step, self.state, data, keep=keep
            )
        self._clock(step)

    def finish(self) -> None:
        """Evaluates, saves and prints what came out of it."""
        config, state = self.run.config, self.state
        found = self._evaluate() | {
            "steps": int(state.step),
            "skipped": int(state.skipped),
        }
        self.save()
        if processes.is_first():
            with writing(config.out, advice=MAKE_ROOM):
                files.write_json(config.out / "summary.json", files.plain(found))
                checksums.seal(config.out, *RESULTS)
            print(
                f"{config.config}: {found['steps']} steps, {found['skipped']} skipped; "
                f"accuracy {100 * found['accuracy']:.2f} %, loss {found['loss']:.4f} "
                f"on {found['examples']} examples\nfiles: {config.out}"
            )

    def _after(self, step: int, metrics: Metrics) -> None:
        config = self.run.config
        last = step == self.last
        if step % config.session.log_every == 0 or last:
            self._log(step, metrics)
        if step % config.eval_every == 0 and not last:
            found = self._evaluate()
            self.writer.write("metrics", step, _named("eval", found))
        if step % config.session.checkpoint_every == 0 and not last:
            self.save()

    def _log(self, step: int, metrics: Metrics) -> None:
        config = self.run.config
        values = {k: v.item() for k, v in metrics._asdict().items()}
        self._stop_if_not_finite(values.pop("in_a_row"))
        rate = np.asarray(self.rate(step - 1 - values["skipped"])).item()
        self.writer.write("metrics", step, values | {"learning_rate": rate})
        now, taken = time.perf_counter(), step - self._counted
        if taken > 0:
            images = taken * config.optimizer.batch_size / (now - self._since)
            each = images / jax.device_count()
            waited = self._waited / (now - self._since)
            self.writer.write(
                "speed",
                step,
                {
                    "images_per_second": images,
                    "images_per_second_per_device": each,
                    "share_of_time_waiting_for_data": waited,
                    "process_peak_bytes": process_peak_bytes(),
                },
            )
            self.progress.update(
                step, f"loss {values['loss']:.4f}  {each:.0f} images/s per device"
            )
        self._clock(step)

    def _stop_if_not_finite(self, in_a_row: int) -> None:
        limit = self.run.config.stop_after_nonfinite
        if in_a_row >= limit:
            raise UserError(
                f"The loss and its gradient must be finite, but {limit} steps in a row "
                f"up to step {int(self.state.step)} were not; they changed nothing, "
                "the checkpoints before are whole. Begin again with a lower `--lr` or "
                "a longer `--warmup-steps`."
            )

    def _evaluate(self) -> dict[str, Any]:
        with self.deadline.phase("evaluating"):
            found = means(map(self._score, self.evaluation))
        self._clock(int(self.state.step))
        return found

    def _score(self, rows: dict) -> Sums:
        sums = self.score(self.state, self.run.layout.put_batch(rows))
        self.deadline.beat("a batch of the evaluation")
        return sums

    def _sums(self, state: TrainState, batch: dict) -> Any:
        variables = Variables(state.params, state.batch_stats)
        return evaluate(self.run.step.network.infer(variables, batch["image"]), batch)

    def _next(self) -> dict:
        begin = time.perf_counter()
        batch = self.run.layout.put_batch(next(self.batches))
        self._waited += time.perf_counter() - begin
        return batch

    def _clock(self, step: int) -> None:
        self._since, self._counted, self._waited = time.perf_counter(), step, 0.0


def _named(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in values.items()}
