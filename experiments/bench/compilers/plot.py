"""A picture of the layers on one device and of the steps, chip by chip."""

from io import BytesIO
from pathlib import Path
from typing import Any

from experiments.bench.compilers import devices
from experiments.common import files

Record = dict[str, Any]
# The palette of Okabe and Ito, which the colour-blind can tell apart.
_COLORS = {
    "jaxbn": "#0072B2",
    "jaxbn-output": "#56B4E9",
    "jaxbn-recompute": "#009E73",
    "jaxbn-leaky": "#56B4E9",
    "flax": "#E69F00",
    "flax-two-pass": "#D55E00",
}
_GREY = "#999999"


def draw(records: list[Record], path: Path) -> None:
    """Writes a PNG: a row of layers for each chip, then one of steps."""
    from matplotlib.figure import Figure

    done = [r for r in records if "error" not in r]
    layers = _by_chip([r for r in done if r["kind"] == "layer" and r["devices"] == 1])
    steps = _by_chip([r for r in done if r["kind"] == "step" and r["devices"] == 1])
    rows = len(layers) + bool(steps)
    if not rows:
        return
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, (chip, mine) in zip(grid, layers.items(), strict=False):
        types = list(dict.fromkeys(r["type"] for r in mine))
        for place, dtype in zip(axes, [*types, None][:2], strict=True):
            _layers(place, chip, dtype, [r for r in mine if r["type"] == dtype])
    if steps:
        names = [*steps, None][:2]
        for place, chip in zip(grid[-1], names, strict=True):
            _steps(place, chip, steps.get(chip, []))
    figure.suptitle("Compiled, not run: what XLA's programs move (lower is better)")
    content = BytesIO()
    figure.savefig(content, dpi=120, metadata={"Software": None})
    files.write_bytes(path, content.getvalue())


def _by_chip(records: list[Record]) -> dict[str, list[Record]]:
    chips = dict.fromkeys(r["chip"] for r in records)
    return {chip: [r for r in records if r["chip"] == chip] for chip in chips}


def _layers(axes: Any, chip: str, dtype: str | None, records: list[Record]) -> None:
    """Bars: passes over an array of the size of x, for each shape."""
    if not records:
        axes.set_visible(False)
        return
    activation = records[0]["activation"]
    mine = [r for r in records if r["activation"] == activation]
    shapes = list(dict.fromkeys(_shape(r) for r in mine))
    norms = list(dict.fromkeys(r["norm"] for r in mine))
    width = 0.8 / len(norms)
    for offset, norm in enumerate(norms):
        bars = {_shape(r): r["bytes_over_x"] for r in mine if r["norm"] == norm}
        places = [i + width * (offset + 0.5) - 0.4 for i in range(len(shapes))]
        heights = [bars.get(shape, 0.0) for shape in shapes]
        color = _COLORS.get(norm, _GREY)
        axes.bar(places, heights, 0.9 * width, label=norm, color=color)
    operation = {"none": "a layer", "relu": "a layer with ReLU"}.get(
        activation, f"a layer, {activation}"
    )
    axes.set_title(f"{devices.CHIPS[chip].title}, {dtype}: {operation}", fontsize=10)
    axes.set_ylabel("bytes moved / bytes of x")
    axes.set_xticks(range(len(shapes)), shapes, rotation=25, ha="right", fontsize=8)
    _plain(axes, "y")
    axes.margins(y=0.15)
    axes.legend(fontsize=7, ncols=len(norms), loc="upper left", framealpha=0.9)


def _steps(axes: Any, chip: str | None, records: list[Record]) -> None:
    """Horizontal bars: gigabytes that a step moves, with the figure beside."""
    if chip is None or not records:
        axes.set_visible(False)
        return
    sizes = [r["bytes"] / 1e9 for r in records]
    colors = [_COLORS.get(r["norm"], _GREY) for r in records]
    bars = axes.barh([r["norm"] for r in records], sizes, color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    images = records[0]["shape"][0]
    title = f"{devices.CHIPS[chip].title}: training step of ResNet-50, {images} images"
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("GB moved")
    _plain(axes, "x")


def _plain(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)


def _shape(record: Record) -> str:
    return "x".join(map(str, record["shape"]))
