"""Compares training with and without a normalization, from the same start.

Run: python -m experiments train      (about a minute on 2 cores)
"""

import jax

from experiments.claims.lab.nets import of_linen
from experiments.claims.lab.plan import Plan
from experiments.claims.lab.splits import Splits
from experiments.common import checkpoint, environment, loop, remembered
from experiments.common.data import load
from experiments.common.errors import again
from experiments.common.files import check_new
from experiments.common.interrupt import Interrupt
from experiments.common.lock import locked
from experiments.digits import results
from experiments.digits.config import (
    TrainConfig,
    check,
    stored,
    to_json,
)
from experiments.digits.run import Run
from experiments.nets.small import ResidualNet

__all__ = ["TrainConfig", "main", "stored"]


def main(config: TrainConfig) -> int:
    """Trains, writes and prints the results, and returns the exit code."""
    check(config)
    with locked(config.out):
        if config.resume:
            begun, now = to_json(stored(config)), to_json(config)
            remembered.check_unchanged(config.out, begun, now)
            remembered.lengthen(config.out, begun, now, *results.FILES)
        else:
            check_new(config.out)
        plans = make_plans(config)
        if not config.resume:
            environment.begin(config.out, to_json(config))
        with Interrupt() as interrupt:
            run = _begin(config, plans)
            if run.step == run.last and results.written(config.out):
                print(f"nothing left to do: the run took all of its {run.last} steps")
                return 0
            line = again("train", "--out", config.out)
            return loop.complete(run, interrupt, again=line)


def make_plans(config: TrainConfig) -> dict[str, Plan]:
    """Returns the plan of each arm; the arms differ in the normalization alone."""
    data = load(config.data, starts=config.starts, seed=config.seed)
    none = data.train[:, :0]
    return {
        norm: Plan(
            of_linen(ResidualNet(norm), data.inputs.shape[1:]),
            Splits(data.inputs, data.labels, data.train, none, data.test),
            cells=[{"lr": config.lr}],
            steps=config.steps,
            batch=config.batch_size,
            evals=-(-config.steps // config.eval_every),
            seed=config.seed,
            # A scale and a bias do not decay, which the claims' "adamw" makes them do.
            optimizer={"adamw": "adamw of kernels"}.get(
                config.optimizer, config.optimizer
            ),
            scored=("test",),
        )
        for norm in dict.fromkeys((config.norm, "none"))
    }


def _begin(config: TrainConfig, plans: dict[str, Plan]) -> Run:
    run = Run(config, plans)
    saved = None
    if config.resume:
        like = jax.device_get(run.states)
        saved = checkpoint.restore_newest(run.identity, like)
    if saved is None:
        run.save()
        return run
    run.states, run.measured = saved
    unfinished = run.step < run.last
    if unfinished and not environment.is_that_of(config.out / "environment.json"):
        note = "this environment differs from environment.json: last bits may differ"
        loop.say(f"note: {note}")
    return run
