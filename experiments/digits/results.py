"""Writes what a finished run found: `curves.png`, `summary.json`, and a table."""

import math
import sys
from pathlib import Path

import jax

from experiments.common import checksums, files
from experiments.common.data import Data
from experiments.common.errors import UserError
from experiments.digits import curves, summary, table
from experiments.digits.config import TrainConfig
from experiments.digits.run import Run

_LAST = "summary.json"
_ALL = ("metrics.jsonl", "curves.png", _LAST)


def written(out: Path) -> bool:
    """Tells whether the results in `out` are complete and as they were written."""
    try:
        checksums.check(out, *_ALL)
    except UserError as error:
        print(f"note: {error} The results are written again.", file=sys.stderr)
        return False
    return (out / _LAST).exists()


def write(config: TrainConfig, run: Run, data: Data) -> str:
    """Writes the files of a finished run into `config.out` and returns the table."""
    arms = {arm: summary.curves(run.rows, arm) for arm in run.states}
    files.write_lines(config.out / "metrics.jsonl", run.rows)
    files.write_bytes(
        config.out / "curves.png", curves.draw(arms, title=_title(config))
    )
    files.write_json(config.out / _LAST, _as_json(arms))
    checksums.seal(config.out, *_ALL)
    return "\n".join(
        [
            _title(config),
            f"{data.train.shape[1]} training and {data.test.shape[1]} test examples; "
            f"{_weights(run)}; {config.steps} steps of {config.batch_size} examples",
            "",
            table.render(arms, run.compile_seconds),
            "",
            f"curves and numbers: {config.out}",
        ]
    )


def _title(config: TrainConfig) -> str:
    return (
        f"{config.data}: {config.starts} starts, {config.optimizer}, "
        f"learning rate {config.lr}"
    )


def _weights(run: Run) -> str:
    counts = (
        f"{sum(leaf[0].size for leaf in jax.tree.leaves(state.params)):,} ({arm})"
        for arm, state in run.states.items()
    )
    return f"weights: {', '.join(counts)}"


def _as_json(arms: dict[str, summary.Curves]) -> dict:
    """Numbers of the table; null stands for "not reached" and "not defined"."""
    found = {name: summary.summarize(arm) for name, arm in arms.items()}
    return {
        "threshold": summary.THRESHOLD,
        "confidence": summary.CONFIDENCE,
        "interval": "t, over the starts",
        "arms": {name: _plain(one) for name, one in found.items()},
    }


def _plain(value: object) -> object:
    if isinstance(value, summary.ArmSummary | summary.Spread | summary.Interval):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
