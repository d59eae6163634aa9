"""Trains a ResNet on one device, on a mesh, or on many hosts.

Run: python -m experiments train --config cifar10-resnet20 --data-dir DIR
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import jax

from experiments import environment
from experiments.config import check_new
from experiments.errors import UserError
from experiments.progress import StepProgress
from experiments.scale import checkpoint, processes
from experiments.scale.config import CONFIGS, ScaleConfig
from experiments.scale.layout import make_layout
from experiments.scale.metrics import Writer
from experiments.scale.network import ghost_batch_size, make_network
from experiments.scale.optimizer import make_optimizer
from experiments.scale.options import (
    check,
    check_unchanged,
    fingerprint,
    stored,
    to_json,
)
from experiments.scale.preemption import Preemption
from experiments.scale.session import Position, Run, Session, Streams
from experiments.scale.step import Step

__all__ = ["CONFIGS", "ScaleConfig", "main", "stored"]


def main(config: ScaleConfig) -> int:
    """Trains and returns the exit code: 0 done, 130 interrupted.

    A process that has lost another one ends at once, with `processes.LOST`.

    Raises:
        UserError: also for a loss that is not finite, and for a full disk.
    """
    check(config)
    with processes.started(config.devices):
        if config.session.compilation_cache:
            folder = config.session.compilation_cache.absolute()
            jax.config.update("jax_compilation_cache_dir", str(folder))
        run = make_run(config)
        streams = _claim_directory(run)
        with processes.Deadline(
            config.devices.process_timeout,
            advice=f"Continue with: {_again(config)}",
        ) as deadline:
            try:
                return _session(run, streams, deadline)
            except checkpoint.SaveError as error:
                # Orbax's threads would complain, at length, of an orderly end.
                processes.leave(str(error), code=2)
                raise


def make_run(config: ScaleConfig) -> Run:
    """Returns the parts of a run; needs the devices to be known."""
    layout, batch_size = make_layout(config.devices), config.optimizer.batch_size
    layout.rows_of_a_device(batch_size)
    size = {"batch_size": batch_size, "data_devices": layout.data_devices}
    network = make_network(
        config.model, config.data, axis_name=layout.axis_name, **size
    )
    step = Step(
        network,
        make_optimizer(config.optimizer),
        batch_size,
        config.optimizer.label_smoothing,
        config.stop_after_nonfinite,
        layout.axis_name,
        sum_gradients=layout.parallel == "pmap",
    )
    return Run(config, layout, step, ghost_batch_size(config.model.bn_sync, **size))


def _claim_directory(run: Run) -> Streams:
    # One process looks and writes; the others must not find what it has written.
    with _all_or_none():
        begun = processes.is_first() and _has_begun(run.config)
        # Data that cannot be read must not leave a directory that is in use.
        streams = run.open_data()
    with _all_or_none():
        if processes.is_first() and not begun:
            environment.begin(run.config.out, to_json(run.config))
    return streams


@contextlib.contextmanager
def _all_or_none() -> Iterator[None]:
    """Raises in all processes what is raised in one: none waits for the others."""
    error = None
    try:
        yield
    except UserError as found:
        error = found
    if processes.all_true(value=error is None):
        return
    raise error or UserError(
        "All processes must be able to begin: see the message of the other ones."
    )


def _has_begun(config: ScaleConfig) -> bool:
    if config.resume and (config.out / "config.json").is_file():
        check_unchanged(config, stored(config))
        return True
    check_new(config.out)
    return False


def _session(run: Run, streams: Streams, deadline: processes.Deadline) -> int:
    config = run.config
    position = _begin(run, streams.train)
    first, last = int(position.state.step), config.optimizer.steps
    if first == last and (config.out / "summary.json").is_file():
        _say(f"nothing left to do: the run took all of its {last} steps")
        return 0
    writer = Writer(
        config.out,
        step=first,
        writes=processes.is_first(),
        tensorboard=config.session.tensorboard,
    )
    with (
        Preemption() as preemption,
        writer,
        StepProgress(last, begin=first, shown=processes.is_first()) as progress,
    ):
        session = Session(run, streams.evaluation, deadline, writer, progress)
        # Closed at the end, whatever ends it: a trace under way is written then.
        with contextlib.closing(session.train(position)) as steps:
            for step in steps:
                if preemption.due(step) and step < last:
                    session.save()
                    _say(f"interrupted at step {step}; continue with: {_again(config)}")
                    return 130
        return session.finish()


def _begin(run: Run, batches: Any) -> Position:
    config = run.config
    saved = None
    if config.resume:
        saved = checkpoint.restore_newest(
            config.out,
            run.layout.shapes(run.step.init),
            fingerprint=fingerprint(config),
        )
    if saved is None:
        return Position(run.layout.init(run.step.init, config.seed), batches)
    if saved.data["group"] != run.group:
        raise UserError(
            f"`--bn-sync {config.model.bn_sync}` must normalize groups of "
            f"{saved.data['group']} examples, as the run began, got {run.group} with "
            "these devices. Use as many as before."
        )
    batches.set_state(saved.data["stream"])
    return Position(saved.state, batches)


def _again(config: ScaleConfig) -> str:
    out = shlex.quote(str(config.out))
    return f"python -m experiments train --resume --out {out}, in every process"


def _say(text: str) -> None:
    if processes.is_first():
        print(text, file=sys.stderr)
