"""The figures of decisions: distances from zero, with starts and intervals."""

import textwrap
from typing import Any

import numpy as np

COLORS = {
    "supported": "#0072B2",
    "reversed": "#D55E00",
    "negligible": "#CC79A7",
    "undecided": "#8A8A8A",
}
_PUBLISHED = {"supported": "+", "contradicted": "−", "qualified": "±"}
_LINEAR, _WIDTH = 1.0, 62  # characters


def height(rows: list[dict]) -> float:
    """Returns how tall the figure must be, in inches."""
    return 0.9 + sum(_space(row) for row in rows) / 2


def draw(figure: Any, rows: list[dict]) -> None:
    """Draws a line for each row: mean and interval, and its starts if it has them.

    Rows have different units, so all is divided by the scale that a row names. The
    band is what is too small to matter. Names are above the lines, because beside them
    they would be all that a telephone shows.
    """
    axes = figure.subplots()
    limit, below = 1.0, np.cumsum([_space(row) for row in rows])
    for n, row in zip(below, rows, strict=True):
        left = axes.get_yaxis_transform()
        published = _PUBLISHED.get(row["published"], "")
        name = textwrap.fill(row["text"], _WIDTH)
        axes.text(0.0, n - 0.24, name, transform=left, va="bottom", size=9)
        axes.text(1.0, n, published, transform=left, ha="right", va="center")
        least = abs(row["least"]) / row["scale"]
        axes.plot([-least, least], [n, n], color="#8A8A8A", lw=9, alpha=0.2)
        if row["mean"] is None:
            continue
        low, mean, high = (
            np.nan if row[key] is None else row[key] / row["scale"]
            for key in ("low", "mean", "high")
        )
        starts = [v / row["scale"] for v in row["values"] if v is not None]
        limit = max(limit, abs(mean), *map(abs, starts))
        color = COLORS.get(row["verdict"], COLORS["undecided"])
        offsets = n + np.linspace(-0.12, 0.12, len(starts))
        axes.plot(starts, offsets, "o", color=color, ms=3, alpha=0.4, mew=0)
        axes.plot([low, high], [n, n], color=color, lw=2.5, solid_capstyle="round")
        axes.plot(mean, n, "o", color=color, ms=6)
    axes.axvline(0, lw=1, color=axes.spines["bottom"].get_edgecolor())
    axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.set_xlim(-2 * limit, 2 * limit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(max(below, default=0) + 0.4, 0.0)
    axes.set_xlabel("← the reverse    effect    as claimed →")


def _space(row: dict) -> float:
    """The height of a row: more if its name takes several lines."""
    return 0.7 + 0.3 * len(textwrap.wrap(row["text"], _WIDTH))
