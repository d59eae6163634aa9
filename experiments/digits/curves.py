"""Draws the learning curves of a run."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.digits.summary import THRESHOLD, Curves

_COLORS = {  # Okabe and Ito: told apart by colour-blind readers too
    "bn": "#0072B2",
    "gn": "#009E73",
    "ln": "#CC79A7",
    "in": "#E69F00",
    "none": "#555555",
}


def draw(arms: dict[str, Curves], *, title: str) -> bytes:
    """Returns a PNG: test accuracy and training loss against steps.

    Thin lines are the starts, thick ones their mean.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, arm in arms.items():
        _lines(left, name, arm.steps, 100 * arm.accuracy)
        _lines(right, name, arm.steps[1:], arm.train_loss[1:])
    left.axhline(100 * THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    left.set(ylabel="test accuracy, %", ylim=(0, 101))
    right.set(ylabel="training loss, nats", yscale="log")
    for axes in (left, right):
        axes.set(xlabel="steps")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def _lines(axes: Axes, name: str, steps: np.ndarray, values: np.ndarray) -> None:
    axes.plot(steps, values, color=_COLORS[name], alpha=0.3, linewidth=0.8)
    mean = values.mean(axis=1)
    axes.plot(steps, mean, color=_COLORS[name], linewidth=2, label=name)
