"""The parts of a training run of an arm, and its outcome."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optax
from jax import Array

from experiments.claims.lab.optimizers import OPTIMIZERS, any_of, decayed
from experiments.claims.lab.splits import Splits

Hyper = Mapping[str, Array]


class Context(NamedTuple):
    """The context of a layer beside its input, parameters and state.

    Attributes:
        train: whether to use batch statistics, noise and dropout.
        key: for random numbers of this step.
        hyper: the numbers of the cell.
    """

    train: bool
    key: Array
    hyper: Hyper


class Net(NamedTuple):
    """A net as two functions.

    Attributes:
        init: `init(key, hyper)` returns parameters and state.
        apply: `apply(params, state, x, context)` returns logits, the new state and taps
            (whatever a probe may want to see; free when unused).
    """

    init: Callable[[Array, Hyper], tuple[Any, Any]]
    apply: Callable[[Any, Any, Array, Context], tuple[Array, Any, Any]]


class Model(NamedTuple):
    """The state of training in one cell of one start."""

    params: Any
    state: Any


class View(NamedTuple):
    """The view of a probe: the data of one start, and one batch of training rows."""

    net: Net
    inputs: Array
    labels: Array
    validation: Array
    test: Array
    batch: Array
    context: Context


Probe = Callable[[Model, View], dict[str, Array]]


@dataclass(frozen=True, eq=False)
class Plan:
    """One training run of an arm.

    Attributes:
        net: the net.
        splits: the data.
        cells: the sweep; every cell has "lr".
        steps: optimizer steps, a multiple of `evals`.
        batch: examples a step.
        evals: evaluations, evenly spaced, the last one at the end.
        seed: of weights, batches and noise.
        optimizer: one of `OPTIMIZERS`, "decayed", whose cells have "decay", or several
            of `OPTIMIZERS`: then every cell has "optimizer", the position of its own.
        cooled: whether the learning rate falls to zero, linearly.
        early: how many of the first intervals between evaluations are evaluated at
            every step instead.
        probe: measured at each evaluation.
        counted: how many examples of a step count in the loss; the others only in the
            statistics. Default: all.
        scored: the rows that are evaluated.
    """

    net: Net
    splits: Splits
    cells: Sequence[dict[str, float]]
    steps: int
    batch: int
    evals: int
    seed: int
    optimizer: str | tuple[str, ...] = "sgd"
    cooled: bool = False
    early: int = 0
    probe: Probe | None = None
    counted: int | None = None
    scored: Sequence[str] = ("train", "validation", "test")

    def transformation(self, hyper: Hyper) -> optax.GradientTransformation:
        """Returns the optimizer of a cell, without its learning rate."""
        if self.optimizer == "decayed":
            return decayed(hyper)
        if isinstance(self.optimizer, str):
            return OPTIMIZERS[self.optimizer]
        return any_of(self.optimizer, hyper["optimizer"])


class Outcome(NamedTuple):
    """The measurements of training.

    Attributes:
        cells: of the plan.
        steps: of the evaluations, (evals,).
        series: name to (starts, cells, evals): `train_loss` since the evaluation
            before, as trained; `fit_loss` and `train_accuracy` (on 512 rows),
            `validation_loss`, `validation_accuracy`, `test_loss` and `test_accuracy`,
            as in inference; and those of the probe.
        model: what training ended with; leaves have leading axes (starts, cells).
    """

    cells: Sequence[dict[str, float]]
    steps: np.ndarray
    series: dict[str, np.ndarray]
    model: Model
