"""The figure that shows all claims at once."""

from typing import Any

import numpy as np

_COLORS = {
    "supported": "#0072B2",
    "contradicted": "#D55E00",
    "inconclusive": "#8A8A8A",
}
_PUBLISHED = {"supported": "+", "contradicted": "−", "qualified": "±"}
_LINEAR = 1.0


def height(verdicts: list[dict]) -> float:
    """Returns how tall the figure must be, in inches."""
    return 1.3 + 0.3 * len(verdicts)


def draw(figure: Any, verdicts: list[dict]) -> None:
    """Draws a row for each claim: how far its effect is from what would support it.

    Rows have different units, so every effect is shown as a distance from the smallest
    that supports the claim, divided by the scale its rule names. Right of the line the
    claim holds.
    """
    axes = figure.subplots()
    limit = 1.0
    for n, row in enumerate(verdicts):
        if row["mean"] is None:
            continue
        ends = [row["low"], row["mean"], row["high"]]
        low, mean, high = (
            np.nan if end is None else (end - row["least"]) / row["scale"]
            for end in ends
        )
        limit = max(limit, abs(mean))
        color = _COLORS.get(row["verdict"], _COLORS["inconclusive"])
        axes.plot([low, high], [n, n], color=color, lw=2.5, solid_capstyle="round")
        axes.plot(mean, n, "o", color=color, ms=6)
    for n, row in enumerate(verdicts):
        axes.text(
            *(1.02, n, _PUBLISHED.get(row["literature"], "")),
            transform=axes.get_yaxis_transform(),
            va="center",
        )
    axes.text(1.0, -0.8, "published", transform=axes.get_yaxis_transform(), ha="right")
    axes.axvline(0, lw=1.2, color=axes.spines["bottom"].get_edgecolor())
    axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.set_xlim(-3 * limit, 3 * limit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    names = [f"{row['text']}  {row['claim']}" for row in verdicts]
    axes.set_yticks(range(len(verdicts)), names)
    axes.set_ylim(len(verdicts) - 0.4, -0.6)
    axes.set_xlabel("← refutes    distance from the decision line    supports →")
