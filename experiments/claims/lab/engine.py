"""Trains every start and every cell of a sweep at once, in one compiled program.

A cell is one choice of numbers, such as a learning rate; all cells of a start see the
same batches and start from the same random numbers, so arms are paired.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.claims.lab.optimizers import OPTIMIZERS, any_of
from experiments.claims.lab.splits import Splits

_TRAIN_SHOWN = 512

# Levels of optimization: random numbers run once and few steps are over before a
# better program is compiled; level 1 is as fast as the default here.
ONCE, _MANY = ({"xla_backend_optimization_level": level} for level in (0, 1))
if jax.__version_info__ < (0, 11):  # halves the effort; XLA has dropped it since
    ONCE["xla_cpu_use_fusion_emitters"] = False
_FEW_STEPS = 150

Hyper = Mapping[str, Array]


class Context(NamedTuple):
    """What a layer may depend on beside its input, parameters and state.

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
    """What training has reached in one cell of one start."""

    params: Any
    state: Any


class View(NamedTuple):
    """What a probe gets: the data of one start, and one batch of training rows."""

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
        optimizer: one of `OPTIMIZERS`, or several: then every cell has "optimizer", the
            position of its own.
        probe: measured at each evaluation.
    """

    net: Net
    splits: Splits
    cells: Sequence[dict[str, float]]
    steps: int
    batch: int
    evals: int
    seed: int
    optimizer: str | tuple[str, ...] = "sgd"
    probe: Probe | None = None


class Outcome(NamedTuple):
    """What training measured.

    Attributes:
        cells: of the plan.
        steps: of the evaluations, (evals,).
        series: name to (starts, cells, evals): `train_loss` since the evaluation
            before, `validation_loss`, `validation_accuracy`, `test_loss`,
            `test_accuracy`, `train_accuracy` (on 512 rows), and those of the probe.
        model: what training ended with; leaves have leading axes (starts, cells).
    """

    cells: Sequence[dict[str, float]]
    steps: np.ndarray
    series: dict[str, np.ndarray]
    model: Model


def train(plan: Plan) -> Outcome:
    """Runs `plan`; `ValueError` if its numbers do not fit, see `batches`."""
    order = jnp.asarray(batches(plan))
    starts = len(plan.splits.train)
    keys = jax.random.split(jax.random.key(plan.seed), (starts, 2))
    hyper = {k: jnp.array([c[k] for c in plan.cells]) for k in plan.cells[0]}
    begun = each(plan.net.init, (0, None), (None, 0), options=ONCE)(keys[:, 0], hyper)
    rows = {
        "train": plan.splits.train[:, :_TRAIN_SHOWN],
        "validation": plan.splits.validation,
        "test": plan.splits.test,
    }
    data = jnp.asarray(plan.splits.inputs), jnp.asarray(plan.splits.labels)
    advance = each(
        functools.partial(_run, plan),
        (0, 0, 0, 0, None, None, None),
        (0, None, None, None, None, None, 0),
        options=ONCE if plan.steps <= _FEW_STEPS else _MANY,
    )
    model, series = advance(begun, keys[:, 1], order, rows, *data, hyper)
    steps = np.arange(1, plan.evals + 1) * (plan.steps // plan.evals)
    series = {name: np.asarray(values) for name, values in series.items()}
    return Outcome(plan.cells, steps, series, model)


def each(
    function: Callable[..., Any],
    starts: Sequence[int | None],
    cells: Sequence[int | None],
    *,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compiles `function` for all starts and, within each, all cells.

    Args:
        function: of one start and cell.
        starts, cells: for each argument, whether it has such an axis (0) or not (None).
        options: of the compiler; `ONCE` for a program that runs once.
    """
    mapped = jax.vmap(jax.vmap(function, tuple(cells)), tuple(starts))
    return jax.jit(mapped, compiler_options=options or _MANY)


def batches(plan: Plan) -> np.ndarray:
    """Returns the rows of every step, (starts, evals, steps / evals, batch).

    Every pass has a new order; the rows left over at its end are not used in it.

    Raises:
        ValueError: if `steps` is no multiple of `evals`, or `batch` exceeds the rows.
    """
    if plan.steps < 1 or plan.steps % plan.evals:
        wanted = f"a positive multiple of `evals`, {plan.evals}, got {plan.steps}"
        raise ValueError(f"`steps` must be {wanted}. Pass another number of either.")
    if (rows := plan.splits.train.shape[1]) < plan.batch:
        raise ValueError(f"`batch` must be at most {rows}, got {plan.batch}. Lower it.")
    shape = (plan.evals, plan.steps // plan.evals, plan.batch)
    per_pass = plan.splits.train.shape[1] // plan.batch
    passes = -(-plan.steps // per_pass)
    found = []
    for start, rows in enumerate(plan.splits.train):
        rng = np.random.default_rng([plan.seed, start])
        taken = [rng.permutation(rows)[: per_pass * plan.batch] for _ in range(passes)]
        found.append(np.concatenate(taken)[: np.prod(shape)].reshape(shape))
    return np.stack(found).astype(np.int32)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _run(
    plan: Plan,
    begun: tuple[Any, Any],
    noise: Array,
    order: Array,
    rows: dict[str, Array],
    inputs: Array,
    labels: Array,
    hyper: Hyper,
) -> tuple[Model, dict[str, Array]]:
    if isinstance(plan.optimizer, str):
        tx = OPTIMIZERS[plan.optimizer]
    else:
        tx = any_of(plan.optimizer, hyper["optimizer"])

    def step(carry, batch):
        params, state, opt_state, count = carry
        context = Context(True, jax.random.fold_in(noise, count), hyper)

        def loss_of(params):
            logits, new, _ = plan.net.apply(params, state, inputs[batch], context)
            return cross_entropy(logits, labels[batch]), new

        (loss, state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        direction, opt_state = tx.update(gradient, opt_state, params)
        params = jax.tree.map(lambda p, d: p - hyper["lr"] * d, params, direction)
        return (params, state, opt_state, count + 1), loss

    def until_evaluation(carry, chunk):
        carry, losses = lax.scan(step, carry, chunk)
        found = {"train_loss": losses.mean()}
        context = Context(False, noise, hyper)
        # All rows at once: one program to compile instead of three.
        every = jnp.concatenate(list(rows.values()))
        logits, _, _ = plan.net.apply(carry[0], carry[1], inputs[every], context)
        bounds = np.cumsum([len(part) for part in rows.values()])[:-1]
        for name, own in zip(rows, jnp.split(logits, bounds), strict=True):
            truth = labels[rows[name]]
            found[f"{name}_accuracy"] = (own.argmax(-1) == truth).mean()
            if name != "train":
                found[f"{name}_loss"] = cross_entropy(own, truth)
        if plan.probe:
            key = jax.random.fold_in(noise, carry[3])
            seen = (inputs, labels, rows["validation"], rows["test"], chunk[-1])
            view = View(plan.net, *seen, Context(True, key, hyper))
            found |= plan.probe(Model(carry[0], carry[1]), view)
        return carry, found

    carry = (*begun, tx.init(begun[0]), jnp.int32(0))
    carry, series = lax.scan(until_evaluation, carry, order)
    return Model(carry[0], carry[1]), series
