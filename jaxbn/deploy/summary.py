"""Running statistics of each layer, beside those of a batch."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbn.core import options, trees
from jaxbn.core.records import COUNT
from jaxbn.core.values import shown
from jaxbn.deploy.model import Model

_HEAD = ("layer", "channels", "values", "batches", "shift", "ratio", "dead")
_TINY = np.finfo(np.float64).tiny


class LayerSummary(NamedTuple):
    """One layer, in float64; all arrays have the shape of its statistics.

    Attributes:
        mean, var: the running statistics.
        batch_mean, batch_var: those of the batch; NaN without values.
        count: the values of the batch in each channel.
        updates: the batches in the running statistics; 0 if they are not counted.
        shift: (batch_mean - mean) / sqrt(var), the distance in standard deviations.
        ratio: batch_var / var.
        dead: True for channels that hardly vary in the batch.
    """

    mean: np.ndarray
    var: np.ndarray
    batch_mean: np.ndarray
    batch_var: np.ndarray
    count: np.ndarray
    updates: np.ndarray
    shift: np.ndarray
    ratio: np.ndarray
    dead: np.ndarray


class Summary(NamedTuple):
    """A table when printed, and a picture; see `jaxbn.deploy.summary`.

    Attributes:
        layers: by path, in the order of the model's statistics.
    """

    layers: dict[str, LayerSummary]

    def __str__(self) -> str:
        """One row for each layer: the worst of its channels, and how many are dead."""
        rows = [_HEAD, *(_row(path, layer) for path, layer in self.layers.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for first, *rest in rows:
            cells = (cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))
            lines.append("  ".join((first.ljust(widths[0]), *cells)))
        return "\n".join(lines)

    def plot(self) -> Any:
        """Draws shift and ratio of every channel, layer by layer.

        Returns:
            A `matplotlib.figure.Figure`, to be saved with `savefig`.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 1.5 + 0.3 * len(self.layers)), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, name, same in zip(axes, ("shift", "ratio"), (0, 1), strict=True):
            for row, layer in enumerate(self.layers.values()):
                values = getattr(layer, name).ravel()
                ax.plot(values, np.full(values.shape, row), "|")
            ax.axvline(same, color="0.5", linewidth=0.8)
            ax.set_xlabel(f"{name} of the batch")
        axes[1].set_xscale("log")
        axes[0].set_yticks(range(len(self.layers)), list(self.layers))
        axes[0].invert_yaxis()
        return figure


def summary(model: Model, batch: Any, *, dead_below: float = 1e-8) -> Summary:
    """Compares the running statistics of each layer with those of a batch.

    This is what to look at when evaluation is worse than training. Take a batch of the
    training data, with layers that normalize as at evaluation. A shift beyond 0.5, or a
    ratio beyond 2 or below 0.5, in a layer that has a thousand values or more, means
    that evaluation normalizes with other statistics than training did:

    - in all layers: the average lags behind the parameters or has hardly begun. Use a
      smaller momentum or `debias=True`, or call `jaxbn.deploy.recalibrate`.
    - in the first layer only: evaluation sees other data, as another scale of pixels.
    - more from layer to layer: each layer passes it on, so mend the first one.
    - none with training data, but some with test data: the domain is another one; see
      `jaxbn.deploy.adapt`, and `jaxbn.variants.domain_batch_norm` for training.

    A channel is dead if its variance in the batch is tiny: what comes out is its bias,
    whatever goes in. What an activation afterwards does to it is not known here.

    Args:
        model: of `jaxbn.deploy.linen_model` or `nnx_model`.
        batch: what the model is called on.
        dead_below: the variance below which a channel is dead. Default: a thousandth of
            the usual epsilon, where the result has 0.03 of the usual deviation.

    Returns:
        A Summary: `print` it, or `plot` it; `layers` has the numbers.

    Raises:
        TypeError: if `model` is no Model, or an argument is of another type.
        ValueError: if `dead_below` is negative.

    Example:
        >>> from flax import nnx
        >>> norm = nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
        >>> x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
        >>> print(jaxbn.deploy.summary(jaxbn.deploy.nnx_model(norm), x))
        layer  channels  values  batches  shift  ratio  dead
                      2       2        0   5.00   0.00     1
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"`model` must be a Model, got {shown(model)}. Make one with "
            "`jaxbn.deploy.linen_model` or `nnx_model`."
        )
    hint = "The default is 1e-8."
    dead_below = options.number("dead_below", dead_below, *COUNT, hint=hint)
    batch = trees.of_arrays("batch", batch)
    moments = jax.jit(model.collect)(model.states, batch)
    layers = {
        path: _layer(state, moments[path], dead_below)
        for path, state in model.states.items()
    }
    return Summary(layers)


def _layer(state: Any, moments: Any, dead_below: float) -> LayerSummary:
    mean, var, updates = (np.asarray(v).astype(_wide(v)) for v in state)
    count, batch_mean, m2 = (np.asarray(v).astype(_wide(v)) for v in moments)
    with np.errstate(invalid="ignore", divide="ignore"):
        batch_mean = np.where(count > 0, batch_mean, np.nan)
        batch_var = m2 / count
        shift = (batch_mean - mean) / np.sqrt(np.maximum(var, _TINY))
        ratio = batch_var / np.maximum(var, _TINY)
    dead = batch_var <= dead_below
    return LayerSummary(
        mean, var, batch_mean, batch_var, count, updates, shift, ratio, dead
    )


def _wide(values: Any) -> Any:
    return np.complex128 if np.iscomplexobj(values) else np.float64


def _row(path: str, layer: LayerSummary) -> tuple[str, ...]:
    def worst(values, size):
        known = values[np.isfinite(values)]
        return f"{known[np.argmax(size(known))]:.2f}" if known.size else "nan"

    return (
        path,
        str(layer.mean.size),
        f"{layer.count.max(initial=0):.0f}",
        f"{layer.updates.max(initial=0):.0f}",
        worst(layer.shift, np.abs),
        worst(layer.ratio, lambda r: np.abs(np.log(np.maximum(r, _TINY)))),
        str(layer.dead.sum()),
    )
