"""Tables of the collectives of a step: as compiled, and in time by the model."""

import math
from typing import Any

from experiments.collectives import cost
from experiments.common.tables import markdown


def table(records: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    header = [
        "devices",
        "layers",
        "all-reduces per layer, forward + backward",
        "bytes of statistics",
        "by the model",
        "ratio",
        "all bytes",
        "by the model",
        "all-reduces",
        "after combining",
        "other collectives",
    ]
    return markdown(header, [_row(record) for record in records])


def times(sent: cost.Traffic) -> str:
    """Milliseconds that a step waits for statistics, by the model, as Markdown."""
    rows = []
    for name, link in cost.LINKS.items():
        for devices in (8, 64, 256, 1024, 4096):
            shared = [
                1e3 * cost.statistics_seconds(sent.layers, size, link)
                if size <= devices
                else math.nan
                for size in (8, 64, devices)
            ]
            gradients = 1e3 * cost.all_reduce(sent.gradients, devices, link)
            figures = ["" if math.isnan(v) else f"{v:.2f}" for v in shared]
            rows.append([name, str(devices), *figures, f"{gradients:.2f}"])
    header = ["link", "devices", "groups of 8", "groups of 64", "all", "gradients"]
    sources = "\n".join(f"{name}: {link.source}." for name, link in cost.LINKS.items())
    return (
        "Milliseconds per step by the model, for statistics shared in groups or by "
        f"all, and for the gradients.\n\n{markdown(header, rows)}\n\n{sources}"
    )


def _row(record: dict[str, Any]) -> list[str]:
    most = record["most_all_reduces_of_a_layer"]
    sent, model = record["statistics_bytes"], record["model_statistics_bytes"]
    others = ", ".join(f"{n} {kind}" for kind, n in record["others"].items())
    return [
        str(record["devices"]),
        str(record["layers"]),
        f"{most['forward']} + {most['backward']}",
        f"{sum(sent.values()):,}",
        f"{sum(model.values()):,}",
        f"{record['statistics_ratio']:.3f}",
        f"{record['total_bytes']:,}",
        f"{record['model_total_bytes']:,}",
        str(record["all_reduces_before_combining"]),
        str(record["all_reduces_after_combining"]),
        others or "none",
    ]
