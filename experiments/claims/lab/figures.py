"""Drawing: one style, the same color for the same arm in every figure."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np

from experiments.claims.lab.table import Table

# Okabe and Ito's colors, which the color-blind can tell apart.
COLORS = {
    "none": "#D55E00",
    "bn": "#0072B2",
    "ln": "#009E73",
    "gn": "#CC79A7",
    "noisy": "#E69F00",
    "other": "#56B4E9",
}
NAMES = {
    "none": "no normalization",
    "bn": "batch normalization",
    "ln": "layer normalization",
    "gn": "group normalization",
    "noisy": "noisy batch normalization",
}
_INK = "#010203"  # Replaced by the color of the page's text.
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **{
        f"{name}": _INK
        for name in (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        )
    },
}


def color(arm: str) -> str:
    """Returns the color of an arm by the first word of its name."""
    return COLORS.get(re.split(r"[ -]", arm)[0], COLORS["other"])


def render(
    draw: Callable[[Any], None], *, salt: str, size: tuple[float, float] = (7.2, 3.6)
) -> tuple[str, bytes, bytes]:
    """Draws once.

    Returns:
        SVG to put into a page (text in the color of the page, names that start with
        `salt`), SVG and PNG to stand alone, on white.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        draw(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        no_date: dict[str, Any] = {"Date": None, "Creator": None}
        figure.savefig(svg, format="svg", transparent=True, metadata=no_date)
        figure.savefig(png, format="png", dpi=110, facecolor="white")
    text = svg.getvalue().decode()
    alone = text.replace(_INK, "#1a1a1a")
    return _inline(text, salt), alone.encode(), png.getvalue()


def _inline(svg: str, salt: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{salt}-', body)
    body = body.replace("url(#", f"url(#{salt}-").replace('href="#', f'href="#{salt}-')
    body = re.sub(r"(-?\d+\.\d{2})\d+", r"\1", body)
    return body.replace(_INK, "currentColor")


def curves(
    axes: Any,
    table: Table,
    arms: Sequence[str],
    *,
    name: str = "test_accuracy",
    by: str = "validation_accuracy",
    **choice: Any,
) -> None:
    """Draws a series against the step: a thin line per start and their mean.

    For every arm the cell that was chosen on the validation rows is shown.
    """
    for arm in arms:
        cell = table.best(arm, by, **choice)
        steps = table.series(arm, "step", **cell)[0]
        values = table.series(arm, name, **cell)
        label = f"{NAMES.get(arm, arm)}, rate {cell['lr']:g}"
        axes.plot(steps, values.T, color=color(arm), alpha=0.25, lw=0.7)
        axes.plot(steps, values.mean(0), color=color(arm), lw=2, label=label)
    axes.set_xlabel("steps")
    axes.set_ylabel(name.replace("_", " "))
    axes.legend()


def sweep(
    axes: Any,
    table: Table,
    arms: Sequence[str],
    *,
    over: str,
    metric: str = "test_accuracy",
    log: bool = True,
    **choice: Any,
) -> None:
    """Draws a metric against a number of the cell, with the range of the starts."""
    for arm in arms:
        x = np.array([cell[over] for cell in table.cells(arm, **choice)])
        values = table.sweep(arm, metric, **choice)
        order = np.argsort(x)
        x, values = x[order], values[order]
        axes.plot(
            x, values.mean(1), "o-", ms=4, color=color(arm), label=NAMES.get(arm, arm)
        )
        axes.fill_between(
            x, values.min(1), values.max(1), color=color(arm), alpha=0.2, lw=0
        )
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(over)
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend()


def strips(
    axes: Any, groups: dict[str, np.ndarray], *, label: str, zero: bool = False
) -> None:
    """Draws the number of each start as a dot, one row per group, with the mean."""
    for n, (name, values) in enumerate(groups.items()):
        offsets = n + np.linspace(-0.15, 0.15, len(values))
        axes.plot(values, offsets, "o", ms=4, alpha=0.7, color=color(name))
        axes.plot([values.mean()] * 2, [n - 0.3, n + 0.3], lw=2, color=color(name))
    axes.set_yticks(range(len(groups)), [NAMES.get(name, name) for name in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel(label)
    if zero:
        axes.axvline(0, lw=1, color=_INK)
