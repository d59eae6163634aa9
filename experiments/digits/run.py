"""What a run has reached and measured so far."""

import math
from dataclasses import dataclass, field

import msgspec

from experiments.digits.loop import Scores, TrainState


class Measured(msgspec.Struct):
    """What a checkpoint holds beside the states: fields of `Run`."""

    rows: list[dict[str, str | int | float | None]]
    train_seconds: dict[str, float]
    compile_seconds: dict[str, float]


@dataclass
class Run:
    """The arms of a run, such as "bn" and "none".

    Attributes:
        states: arm to its state.
        rows: the lines of `metrics.jsonl` so far.
        train_seconds: arm to the time its steps took, all starts together.
        compile_seconds: arm to the time its compilation took in the latest session.
    """

    states: dict[str, TrainState]
    rows: list[dict] = field(default_factory=list)
    train_seconds: dict[str, float] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps that every arm has taken."""
        return min(int(state.step) for state in self.states.values())

    def record(self, arm: str, scores: Scores, train_loss: list[float] | None) -> None:
        """Adds one row for each start of `arm`.

        Args:
            arm: which one.
            scores: on the test split.
            train_loss: mean since the evaluation before, for each start; None before
                the first step.
        """
        step, seconds = int(self.states[arm].step), self.train_seconds.get(arm, 0.0)
        starts = zip(scores.loss.tolist(), scores.accuracy.tolist(), strict=True)
        for start, (test_loss, accuracy) in enumerate(starts):
            row = {
                "arm": arm,
                "start": start,
                "step": step,
                "seconds": round(seconds, 6),
                "train_loss": train_loss and _finite(train_loss[start]),
                "test_loss": _finite(test_loss),
                "test_accuracy": round(accuracy, 6),  # 342 of 360 are 0.95
            }
            self.rows.append(row)

    def accuracy(self, arm: str) -> float:
        """Returns the mean over the starts at the latest evaluation of `arm`."""
        step = int(self.states[arm].step)
        latest = [
            row["test_accuracy"]
            for row in self.rows[-sum(map(_starts, self.states.values())) :]
            if (row["arm"], row["step"]) == (arm, step)
        ]
        return sum(latest) / len(latest)


def _starts(state: TrainState) -> int:
    return len(state.key)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no nan
