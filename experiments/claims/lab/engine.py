"""Trains every start and every cell of a sweep at once, in one compiled program.

A cell is one choice of numbers, such as a learning rate; all cells of a start see the
same batches and start from the same random numbers, so arms are paired.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.claims.lab.plan import Context, Hyper, Model, Outcome, Plan, View

_TRAIN_SHOWN = 512

# Levels of optimization: random numbers run once and few steps are over before a
# better program is compiled; level 1 is as fast as the default here.
ONCE, _MANY = ({"xla_backend_optimization_level": level} for level in (0, 1))
if jax.__version_info__ < (0, 11):  # halves the effort; XLA has dropped it since
    ONCE["xla_cpu_use_fusion_emitters"] = False
_FEW_STEPS = 150


class State(NamedTuple):
    """The variables that training changes in one cell of one start."""

    model: Model
    opt_state: Any
    step: Array


class Given(NamedTuple):
    """The constants of training: random key, rows to score, data, the cell."""

    noise: Array
    rows: dict[str, Array]
    inputs: Array
    labels: Array
    hyper: Hyper


# Which of it each start, and each cell, has of its own.
STARTS: Any = Given(*[0, 0, None, None, None])
CELLS: Any = Given(*[None, None, None, None, 0])


def train(plan: Plan) -> Outcome:
    """Runs `plan`; `ValueError` if its numbers do not fit, see `batches`."""
    order = batches(plan)
    state, given = begin(plan)
    run = each(
        functools.partial(_run, plan),
        (0, STARTS, 0),
        (0, CELLS, None),
        options=ONCE if plan.steps <= _FEW_STEPS else _MANY,
    )
    parts = [order[:, plan.early :]]
    if plan.early:
        one_by_one = len(order), -1, 1, plan.batch
        parts.insert(0, order[:, : plan.early].reshape(one_by_one))
    found = []
    for part in parts:
        state, series = run(state, given, jnp.asarray(part))
        found.append(series)
    series = {n: np.concatenate([one[n] for one in found], 2) for n in found[0]}
    lengths = [np.full(part.shape[1], part.shape[2]) for part in parts]
    steps = np.cumsum(np.concatenate(lengths))
    return Outcome(plan.cells, steps, series, state.model)


def begin(plan: Plan) -> tuple[State, Given]:
    """Returns what training begins with, leading axes (starts, cells)."""
    keys = jax.random.split(jax.random.key(plan.seed), (len(plan.splits.train), 2))
    hyper = {k: jnp.array([c[k] for c in plan.cells]) for k in plan.cells[0]}

    def init(key, hyper):
        model = Model(*plan.net.init(key, hyper))
        opt_state = plan.transformation(hyper).init(model.params)
        return State(model, opt_state, jnp.int32(0))

    state = each(init, (0, None), (None, 0), options=ONCE)(keys[:, 0], hyper)
    rows = {name: getattr(plan.splits, name) for name in plan.scored}
    if "train" in rows:
        rows["train"] = rows["train"][:, :_TRAIN_SHOWN]
    data = jnp.asarray(plan.splits.inputs), jnp.asarray(plan.splits.labels)
    return state, Given(keys[:, 1], rows, *data, hyper)


def each(
    function: Callable[..., Any],
    starts: Sequence[Any],
    cells: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
) -> Any:
    """Compiles `function` for all starts and, within each, all cells.

    Args:
        function: of one start and cell.
        starts, cells: for each argument, or part of it, whether it has such an axis (0)
            or not (None).
        options: of the compiler; `ONCE` for a program that runs once.
    """
    mapped = jax.vmap(jax.vmap(function, tuple(cells)), tuple(starts))
    return jax.jit(mapped, compiler_options=options or _MANY)


def batches(plan: Plan) -> np.ndarray:
    """Returns the rows of every step, (starts, evals, steps / evals, batch).

    Raises:
        ValueError: if `steps` is no multiple of `evals`, or `batch` exceeds the rows.
    """
    if plan.steps < 1 or plan.steps % plan.evals:
        wanted = f"a positive multiple of `evals`, {plan.evals}, got {plan.steps}"
        raise ValueError(f"`steps` must be {wanted}. Pass another number of either.")
    if (rows := plan.splits.train.shape[1]) < plan.batch:
        raise ValueError(f"`batch` must be at most {rows}, got {plan.batch}. Lower it.")
    found = np.stack([*itertools.islice(stream(plan), plan.steps)], axis=1)
    return found.reshape(len(found), plan.evals, -1, plan.batch)


def stream(plan: Plan) -> Iterator[np.ndarray]:
    """Yields the rows of each step, (starts, batch), int32, without end.

    Every pass has a new order; the rows left over at its end are not used in it.
    """
    train = plan.splits.train
    numbers = [np.random.default_rng([plan.seed, n]) for n in range(len(train))]
    while True:
        order = [
            rng.permutation(rows) for rng, rows in zip(numbers, train, strict=True)
        ]
        ends = range(plan.batch, train.shape[1] + 1, plan.batch)
        yield from (np.stack(order)[:, end - plan.batch : end] for end in ends)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _run(
    plan: Plan, state: State, given: Given, order: Array
) -> tuple[State, dict[str, Array]]:
    def until_evaluation(state, chunk):
        state, loss = advance(plan, state, given, chunk, len(chunk))
        found = {"train_loss": loss, **score(plan, state, given)}
        if plan.probe:
            rows = given.rows["validation"], given.rows["test"], chunk[-1]
            key = jax.random.fold_in(given.noise, state.step)
            context = Context(True, key, given.hyper)
            view = View(plan.net, given.inputs, given.labels, *rows, context)
            found |= plan.probe(state.model, view)
        return state, found

    return lax.scan(until_evaluation, state, order)


def advance(
    plan: Plan, state: State, given: Given, order: Array, steps: int | Array
) -> tuple[State, Array]:
    """Trains on the first `steps` batches of `order`; returns their mean loss too."""
    tx = plan.transformation(given.hyper)

    def step(number, carry):
        (model, opt_state, count), total = carry
        rows = order[number]
        key = jax.random.fold_in(given.noise, count)
        context = Context(True, key, given.hyper)

        def loss_of(params):
            x = given.inputs[rows]
            logits, new, _ = plan.net.apply(params, model.state, x, context)
            kept = slice(plan.counted)
            return cross_entropy(logits[kept], given.labels[rows][kept]), new

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, new), gradient = gradient_of(model.params)
        direction, opt_state = tx.update(gradient, opt_state, model.params)
        rate = given.hyper["lr"] * (1 - count / plan.steps if plan.cooled else 1)
        params = jax.tree.map(lambda p, d: p - rate * d, model.params, direction)
        return State(Model(params, new), opt_state, count + 1), total + loss

    state, total = lax.fori_loop(0, steps, step, (state, jnp.float32(0)))
    return state, total / steps


def score(plan: Plan, state: State, given: Given) -> dict[str, Array]:
    """Returns accuracy and loss on all rows that are scored; "fit_loss" for "train"."""
    context = Context(False, given.noise, given.hyper)
    # All rows at once: one program to compile instead of three.
    every = given.inputs[jnp.concatenate(list(given.rows.values()))]
    logits, _, _ = plan.net.apply(*state.model, every, context)
    bounds = np.cumsum([len(part) for part in given.rows.values()])[:-1]
    found = {}
    for (name, rows), own in zip(
        given.rows.items(), jnp.split(logits, bounds), strict=True
    ):
        truth = given.labels[rows]
        found[f"{name}_accuracy"] = (own.argmax(-1) == truth).mean()
        loss = "fit" if name == "train" else name
        found[f"{loss}_loss"] = cross_entropy(own, truth)
    return found
