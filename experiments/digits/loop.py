"""The training loop: all starts at once, many steps in one compiled call."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from experiments.common.data import Data

MOMENTUM = 0.9

# Compiling the random numbers of every kernel takes 8 s optimized, 1 s this way.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


class TrainState(NamedTuple):
    """Everything that training changes. Leading axis of all but `step`: the starts.

    Attributes:
        step: steps taken, shape (), int32.
        key: random key that orders the batches, as numbers, (starts, 2), uint32.
        params: weights.
        batch_stats: running statistics; empty without batch normalization.
        opt_state: state of the optimizer.
    """

    step: Array
    key: Array
    params: Any
    batch_stats: Any
    opt_state: Any


class Scores(NamedTuple):
    """Mean cross-entropy and share of right answers on a test split."""

    loss: Array
    accuracy: Array


def optimizer(name: str, lr: float) -> optax.GradientTransformation:
    """Returns the optimizer called `name` with a constant learning rate."""
    makers: dict[str, Callable[[float], optax.GradientTransformation]] = {
        "sgd": optax.sgd,
        "momentum": functools.partial(optax.sgd, momentum=MOMENTUM),
        "adam": optax.adam,
        "adamw": functools.partial(optax.adamw, mask=_kernels),
    }
    return makers[name](lr)


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@dataclass(frozen=True, eq=False)
class Loop:
    """Trains `net` on every split of `data` at the same time.

    Attributes:
        net: module with `__call__(x, *, train)`.
        tx: optimizer.
        data: inputs and labels, and the splits, one for each start.
        batch_size: examples a step, for each start.
    """

    net: nn.Module
    tx: optax.GradientTransformation
    data: Data
    batch_size: int

    def init(self, seed: int) -> TrainState:
        """Returns the state before the first step; kernels depend on `seed` alone."""
        return jax.jit(self._init_all, compiler_options=_RUN_ONCE)(jax.random.key(seed))

    def shapes(self) -> TrainState:
        """Returns the shapes and dtypes of the state."""
        return jax.eval_shape(self._init_all, jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def advance(self, state: TrainState, stop: Array) -> tuple[TrainState, Array]:
        """Trains up to step `stop`; `state` must not be used again.

        Returns:
            The state, and the mean training loss over these steps, shape (starts,).
        """
        begin, total = state.step, jnp.zeros(len(self.data.train))
        state, total = lax.fori_loop(begin, stop, self._take_step, (state, total))
        return state, total / (stop - begin)

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(self, state: TrainState) -> Scores:
        """Returns the scores on the whole test split, shape (starts,) each."""
        rows = jnp.asarray(self.data.test)
        return jax.vmap(self._evaluate_one)(state.params, state.batch_stats, rows)

    def _init_all(self, key: Array) -> TrainState:
        keys = jax.random.split(key, len(self.data.train))
        return TrainState(jnp.int32(0), *jax.vmap(self._init_one)(keys))

    def _init_one(self, key: Array) -> tuple[Array, Any, Any, Any]:
        weights, order = jax.random.split(key)
        example = jnp.asarray(self.data.inputs[:1])
        variables = self.net.init(weights, example, train=False)
        params, statistics = variables["params"], variables.get("batch_stats", {})
        return jax.random.key_data(order), params, statistics, self.tx.init(params)

    def _take_step(
        self, step: Array, carry: tuple[TrainState, Array]
    ) -> tuple[TrainState, Array]:
        state, total = carry
        train = jnp.asarray(self.data.train)
        in_axes = (None, 0, 0, 0, 0, 0)
        loss, *changed = jax.vmap(self._step_one, in_axes)(step, train, *state[1:])
        return TrainState(step + 1, state.key, *changed), total + loss

    def _step_one(
        self,
        step: Array,
        train: Array,
        key: Array,
        params: Any,
        statistics: Any,
        opt_state: Any,
    ) -> tuple[Array, Any, Any, Any]:
        order = jax.random.wrap_key_data(key)
        rows = batch(step, order, train, size=self.batch_size)
        gradient_of = jax.value_and_grad(self._loss, has_aux=True)
        (loss, statistics), gradient = gradient_of(params, statistics, rows)
        updates, opt_state = self.tx.update(gradient, opt_state, params)
        return loss, optax.apply_updates(params, updates), statistics, opt_state

    def _loss(self, params: Any, statistics: Any, rows: Array) -> tuple[Array, Any]:
        inputs, labels = self._examples(rows)
        variables = {"params": params, "batch_stats": statistics}
        logits, changed = self.net.apply(
            variables, inputs, train=True, mutable=["batch_stats"]
        )
        return _cross_entropy(logits, labels), changed.get("batch_stats", {})

    def _evaluate_one(self, params: Any, statistics: Any, rows: Array) -> Scores:
        inputs, labels = self._examples(rows)
        variables = {"params": params, "batch_stats": statistics}
        logits: Any = self.net.apply(variables, inputs, train=False)
        right = logits.argmax(axis=-1) == labels
        return Scores(_cross_entropy(logits, labels), right.mean())

    def _examples(self, rows: Array) -> tuple[Array, Array]:
        return jnp.asarray(self.data.inputs)[rows], jnp.asarray(self.data.labels)[rows]


def batch(step: Array, key: Array, train: Array, *, size: int) -> Array:
    """Returns the positions of the batch of `step`, shape (size,).

    Every pass takes the examples in a new order, without replacement; those left over
    at its end, fewer than `size`, are not used in that pass.
    """
    per_pass = len(train) // size
    order = jax.random.permutation(jax.random.fold_in(key, step // per_pass), train)
    return lax.dynamic_slice(order, (step % per_pass * size,), (size,))


def _cross_entropy(logits: Any, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
