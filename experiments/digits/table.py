"""Prints the results of a run."""

import math
from collections.abc import Sequence

from experiments.digits.summary import (
    THRESHOLD,
    ArmSummary,
    Curves,
    Interval,
    Spread,
    compare,
    summarize,
)

_GOAL = f"{THRESHOLD:.0%}".replace("%", " %")


def render(arms: dict[str, Curves], compile_seconds: dict[str, float]) -> str:
    """Returns the table, with one line for each arm, and what its numbers mean."""
    header = (
        "norm",
        f"reached {_GOAL}",
        f"steps to {_GOAL}",
        f"seconds to {_GOAL}",
        "final accuracy, %",
        "training, s",
        "compiling, s",
    )
    rows = [
        _row(name, summarize(arm), compile_seconds[name]) for name, arm in arms.items()
    ]
    notes = [
        "steps and seconds: median (range) over the starts, at the first evaluation "
        f"at or above {_GOAL};",
        "seconds: measured training time of all starts together, without compiling "
        "and evaluating;",
        "final accuracy: on the test split, mean over the starts [95 % t interval].",
    ]
    return "\n".join([*_align([header, *rows]), "", *notes, *_comparison(arms)])


def _row(name: str, summary: ArmSummary, compiling: float) -> tuple[str, ...]:
    return (
        name,
        f"{summary.reached} of {summary.starts}",
        _spread(summary.steps, ".0f"),
        _spread(summary.seconds, ".1f"),
        _interval(summary.accuracy)
        + (f", {summary.diverged} diverged" if summary.diverged else ""),
        f"{summary.train_seconds:.1f}",
        f"{compiling:.1f}",
    )


def _comparison(arms: dict[str, Curves]) -> list[str]:
    if len(arms) < 2:
        return []
    (name, arm), (other, plain) = arms.items()
    difference, ratio, both = compare(arm, plain)
    lines = [
        "",
        f"{name} minus {other}, start by start: {_interval(difference)} points;",
    ]
    if both:
        lines.append(
            f"steps of {other} / steps of {name} to {_GOAL}: {ratio:.1f} "
            f"(median over the {both} starts where both get there)."
        )
    else:
        lines.append(f"no start reached {_GOAL} with both.")
    return lines


def _spread(spread: Spread, digits: str) -> str:
    if math.isinf(spread.low):
        return "not reached"

    def show(value: float) -> str:
        return "not reached" if math.isinf(value) else f"{value:{digits}}"

    return f"{show(spread.median)} ({show(spread.low)} - {show(spread.high)})"


def _interval(interval: Interval) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]" if low == low else f"{mean:.1f} [n/a]"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return [
        lines[0].rstrip(),
        "-" * len(lines[0]),
        *(line.rstrip() for line in lines[1:]),
    ]
