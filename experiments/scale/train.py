"""Trains a ResNet on one device, on a mesh, or on many hosts.

Run: python -m experiments train --config cifar10-resnet20 --data-dir DIR
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax

from experiments.common import checkpoint, checksums, environment, loop, processes
from experiments.common.errors import UserError
from experiments.common.files import check_new
from experiments.common.lock import locked
from experiments.common.progress import StepProgress
from experiments.common.remembered import lengthen
from experiments.scale import agreement, connection
from experiments.scale.config import CONFIGS, ScaleConfig
from experiments.scale.deadline import Deadline
from experiments.scale.layout import make_layout
from experiments.scale.metrics import Writer, Written
from experiments.scale.network import ghost_batch_size, make_network
from experiments.scale.optimizer import make_optimizer
from experiments.scale.options import (
    again,
    check,
    check_unchanged,
    identity,
    placement,
    stored,
    to_json,
)
from experiments.scale.preemption import Preemption
from experiments.scale.session import RESULTS, Position, Run, Session, Streams
from experiments.scale.step import Step

__all__ = ["CONFIGS", "ScaleConfig", "main", "stored"]


def main(config: ScaleConfig) -> int:
    """Trains and returns the exit code: 0 done, 130 interrupted.

    A process that has lost another one ends at once, with `supervise.LOST`.

    Raises:
        UserError: also for a loss that is not finite, and for a full disk.
    """
    check(config)
    advice = f"Continue with: {again(config)}"
    with (
        Deadline(config.devices, advice=advice) as deadline,
        connection.started(config.devices),
        contextlib.ExitStack() as held,
    ):
        if config.session.compilation_cache:
            folder = config.session.compilation_cache.absolute()
            jax.config.update("jax_compilation_cache_dir", str(folder))
        run, streams = _claim_directory(config, held)
        return _session(run, streams, deadline)


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


def _claim_directory(
    config: ScaleConfig, held: contextlib.ExitStack
) -> tuple[Run, Streams]:
    # One process looks and writes; the others must not find what it has written.
    with processes.all_or_none():
        if processes.is_first():
            held.enter_context(locked(config.out))
    agreement.check(config)
    with processes.all_or_none():
        begun = processes.is_first() and _has_begun(config)
        run = make_run(config)
        # Data that cannot be read must not leave a directory that is in use.
        streams = run.open_data()
    agreement.check_data(config, streams.sources)
    with processes.all_or_none():
        if processes.is_first() and not begun:
            environment.begin(config.out, to_json(config))
    return run, streams


def _has_begun(config: ScaleConfig) -> bool:
    if config.resume and (config.out / "config.json").is_file():
        begun = stored(config)
        check_unchanged(config, begun)
        lengthen(config.out, to_json(begun), to_json(config), *RESULTS)
        return True
    check_new(config.out)
    return False


def _session(run: Run, streams: Streams, deadline: Deadline) -> int:
    config = run.config
    position, before = _begin(run, streams.train)
    first, last = int(position.state.step), config.optimizer.steps
    if first == last and (config.out / "summary.json").is_file():
        checksums.check(config.out, *RESULTS)
        loop.say(f"nothing left to do: the run took all of its {last} steps")
        return 0
    writer = Writer(
        config.out,
        step=first,
        before=before,
        writes=processes.is_first(),
        tensorboard=config.session.tensorboard,
    )
    with (
        Preemption() as preemption,
        writer,
        StepProgress(last, begin=first, shown=processes.is_first()) as progress,
    ):
        rest = streams.evaluation, deadline, writer, progress
        session = Session(run, position, *rest)
        return loop.complete(session, preemption, again=again(config))


def _begin(run: Run, batches: Any) -> tuple[Position, Mapping[str, Written]]:
    """Returns the position to go on from, and what the files of metrics held there."""
    config, saved = run.config, None
    if config.resume:
        like = run.layout.shapes(run.step.init)
        saved = checkpoint.restore_newest(identity(config), like)
    if saved is None:
        state = run.layout.init(run.step.init, config.seed)
        return Position(state, batches), {}
    if saved.data.group != run.group:
        raise UserError(
            f"`--bn-sync {config.model.bn_sync}` must normalize groups of "
            f"{saved.data.group} examples, as the run began, got {run.group} with "
            "these devices. Use as many as before."
        )
    if int(saved.state.step) < config.optimizer.steps and not _as_before(config):
        loop.say(
            "note: other devices or packages than at the start: last bits may differ"
        )
    batches.set_state(saved.data.stream)
    return Position(saved.state, batches), saved.data.files


def _as_before(config: ScaleConfig) -> bool:
    begun = to_json(stored(config))
    same = all(begun[name] == now for name, now in placement(config).items())
    return same and environment.is_that_of(config.out / "environment.json")
