"""Writes what a finished run found: `curves.png`, `summary.json`, and a table."""

import math
import sys
from pathlib import Path
from typing import Any

from experiments.claims.lab import figures
from experiments.claims.lab.statistics import CONFIDENCE
from experiments.claims.lab.table import Table
from experiments.common import checksums, files
from experiments.common.errors import UserError
from experiments.common.tables import aligned
from experiments.digits import summary
from experiments.digits.config import TrainConfig
from experiments.digits.summary import THRESHOLD, Interval, Measured, Spread

_LAST = "summary.json"
FILES = ("metrics.jsonl", "curves.png", _LAST)
_GOAL = f"{100 * THRESHOLD:.0f} %"
_NOTES = f"""
steps and seconds: median (range) over the starts, at the first evaluation at or above \
{_GOAL};
seconds: measured training time of all starts together, without compiling and \
evaluating;
final accuracy: on the test split, mean over the starts [95 % t interval].
"""


def written(out: Path) -> bool:
    """Tells whether the results in `out` are complete and as they were written."""
    try:
        checksums.check(out, *FILES)
    except UserError as error:
        print(f"note: {error} The results are written again.", file=sys.stderr)
        return False
    return (out / _LAST).exists()


def write(
    config: TrainConfig,
    measured: Measured,
    weights: dict[str, int],
    examples: tuple[int, int],
) -> str:
    """Writes the files of a finished run into `config.out` and returns the table.

    Args:
        config: the options.
        measured: what has come out.
        weights: how many each arm has.
        examples: to train and to test on.
    """
    table = summary.table(measured.rows, lr=config.lr)
    arms = {arm: summary.summarize(table, arm) for arm in weights}
    title = (
        f"{config.data}: {config.starts} starts, {config.optimizer}, "
        f"learning rate {config.lr}"
    )
    _, _, png = figures.render(
        lambda figure: _draw(figure, table, list(arms), title),
        salt="curves",
        size=(11, 4.2),
    )
    content = {
        "threshold": THRESHOLD,
        "confidence": CONFIDENCE,
        "interval": "t, over the starts",
        "arms": arms,
    }
    files.write_lines(config.out / "metrics.jsonl", measured.rows)
    files.write_bytes(config.out / "curves.png", png)
    # Null stands for "not reached" and "not defined".
    files.write_json(config.out / _LAST, files.plain(content))
    checksums.seal(config.out, *FILES)
    counts = ", ".join(f"{count:,} ({arm})" for arm, count in weights.items())
    return "\n".join(
        [
            title,
            f"{examples[0]} training and {examples[1]} test examples; weights: "
            f"{counts}; {config.steps} steps of {config.batch_size} examples",
            "",
            rendered(table, arms, measured.compile_seconds),
            "",
            f"curves and numbers: {config.out}",
        ]
    )


def rendered(
    table: Table, arms: dict[str, summary.Arm], compile_seconds: dict[str, float]
) -> str:
    """Returns a table with a line for each arm, and what its numbers mean."""
    header = ["norm", f"reached {_GOAL}", f"steps to {_GOAL}", f"seconds to {_GOAL}"]
    header += ["final accuracy, %", "training, s", "compiling, s"]
    rows = [
        [
            name,
            f"{arm.reached} of {arm.starts}",
            _spread(arm.steps, ".0f"),
            _spread(arm.seconds, ".1f"),
            _interval(arm.accuracy) + f", {arm.diverged} diverged" * bool(arm.diverged),
            f"{arm.train_seconds:.1f}",
            f"{compile_seconds[name]:.1f}",
        ]
        for name, arm in arms.items()
    ]
    return "\n".join(
        [aligned(header, rows), _NOTES, _comparison(table, *arms)]
    ).rstrip()


def _comparison(table: Table, arm: str, plain: str = "") -> str:
    if not plain:
        return ""
    difference, ratio, both = summary.compare(table, arm, plain)
    reached = f"no start reached {_GOAL} with both."
    if both:
        reached = (
            f"steps of {plain} / steps of {arm} to {_GOAL}: {ratio:.1f} "
            f"(median over the {both} starts where both get there)."
        )
    gain = _interval(difference)
    return f"{arm} minus {plain}, start by start: {gain} points;\n{reached}"


def _spread(spread: Spread, digits: str) -> str:
    median, low, high = (
        "not reached" if math.isinf(value) else f"{value:{digits}}"
        for value in (spread.median, spread.low, spread.high)
    )
    return low if math.isinf(spread.low) else f"{median} ({low} - {high})"


def _interval(found: Interval) -> str:
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]" if low == low else f"{mean:.1f} [n/a]"


def _draw(figure: Any, table: Table, arms: list[str], title: str) -> None:
    """Draws test accuracy and training loss; thin lines are the starts."""
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "test_accuracy"), (right, "train_loss")):
        figures.curves(axes, table, arms, name=name, by="test_accuracy")
    left.axhline(THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    left.set_ylim(0, 1.01)
    right.set_yscale("log")
    figure.suptitle(title)
