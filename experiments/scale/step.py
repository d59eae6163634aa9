"""One training step and one evaluation step, as pure functions of arrays."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import jaxbn.optim
from experiments.common.errors import UserError
from experiments.scale.network import Network, Variables


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
        step: batches used, shape (), int32.
        params: weights, float32.
        batch_stats: running statistics, float32.
        opt_state: state of the optimizer.
        skipped: steps that were not finite and changed nothing else, shape (), int32.
        in_a_row: the last of them without a finite one between, shape (), int32.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    skipped: Array
    in_a_row: Array


class Metrics(NamedTuple):
    """The scores of one training step: float32 scalars, and `in_a_row` of the state."""

    loss: Array
    accuracy: Array
    gradient_norm: Array
    skipped: Array
    in_a_row: Array


class Sums(NamedTuple):
    """Sums over the valid examples of a batch, shape () each."""

    loss: Array
    right: Array
    examples: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The parts of a training step.

    Attributes:
        network: its `axis_name` is that of this step.
        tx: the optimizer.
        batch_size: examples of all devices together.
        label_smoothing: share of the label that is spread over all classes.
        stop_after: non-finite steps in a row after which nothing changes any more.
        axis_name: mesh axis of the examples; None where the program sees all of them.
        sum_gradients: whether the gradient of each device is of its own examples, as
            in `pmap`; `shard_map` adds them up by itself.
    """

    network: Network
    tx: optax.GradientTransformation
    batch_size: int
    label_smoothing: float = 0.0
    stop_after: int = 10
    axis_name: str | None = None
    sum_gradients: bool = False

    def init(self, key: Array) -> TrainState:
        """Returns the state before the first step; it depends on `key` alone."""
        params, batch_stats = self.network.init(key)
        zero = jnp.int32(0)
        return TrainState(
            zero, params, batch_stats, self.tx.init(params), zero, jnp.int32(0)
        )

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, Metrics]:
        """Trains one step further.

        A step whose loss, gradient or statistics are not finite only counts. After
        `stop_after` of them in a row nothing changes at all.

        Args:
            state: of all devices.
            batch: "image" (examples, H, W, C) and "label" (examples,), of this
                program: all examples, or those of the device.
        """
        of_loss = jax.value_and_grad(self._loss, has_aux=True)
        (loss, (right, batch_stats)), gradient = of_loss(
            state.params, state.batch_stats, batch
        )
        loss, right = self._total((loss, right))
        if self.sum_gradients:
            gradient = self._total(gradient)
        change, opt_state = self.tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        new, finite = jaxbn.optim.keep_finite(
            (params, batch_stats, opt_state),
            (state.params, state.batch_stats, state.opt_state),
            watch=(loss, gradient, batch_stats),
        )
        bad = jnp.where(finite, 0, 1)
        params, batch_stats, opt_state = new
        moved = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            skipped=state.skipped + bad,
            in_a_row=jnp.where(finite, 0, state.in_a_row + 1),
        )
        stopped = state.in_a_row >= self.stop_after
        state = jax.tree.map(lambda a, b: jnp.where(stopped, a, b), state, moved)
        norm = optax.global_norm(gradient)
        return state, Metrics(loss, right, norm, state.skipped, state.in_a_row)

    def _loss(self, params: Any, batch_stats: Any, batch: dict) -> tuple[Array, Any]:
        logits, batch_stats = self.network.train(
            Variables(params, batch_stats), batch["image"], None
        )
        losses = _cross_entropy(logits, batch["label"], self.label_smoothing)
        right = (logits.argmax(-1) == batch["label"]).sum() / self.batch_size
        return losses.sum() / self.batch_size, (right, batch_stats)

    def _total(self, values: Any) -> Any:
        return values if self.axis_name is None else lax.psum(values, self.axis_name)


def evaluate(logits: Array, batch: dict) -> Sums:
    """Returns sums over the examples where "mask" is true, without smoothing.

    Args:
        logits: (examples, classes).
        batch: "label" (examples,) and "mask" (examples,), bool.
    """
    mask = batch["mask"]
    losses = _cross_entropy(logits, batch["label"], 0.0)
    right = logits.argmax(-1) == batch["label"]
    # `where` and not a product: padding may be NaN, and NaN * 0 is NaN.
    return Sums(
        jnp.where(mask, losses, 0).sum(), (mask & right).sum(), mask.sum(dtype="int32")
    )


def means(sums: Iterable[Sums]) -> dict[str, Any]:
    """Returns "loss" and "accuracy" per example of some batches, and "examples".

    Raises:
        UserError: if there is no example.
    """
    found = np.array([[value.item() for value in one] for one in sums]).reshape(-1, 3)
    loss, right, examples = found.sum(0).tolist()
    if not examples:
        raise UserError(
            "The evaluation data must have at least one example, got none. Check "
            "`--source` and `--data-dir` of the run."
        )
    mean = {"loss": loss / examples, "accuracy": right / examples}
    return mean | {"examples": int(examples)}


def _cross_entropy(logits: Array, labels: Array, smoothing: float) -> Array:
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(
        logits, optax.losses.smooth_labels(target, smoothing)
    )
