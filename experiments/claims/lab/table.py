"""The runs of one experiment, as the rules and figures ask for them."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from experiments.claims.lab.rows import Row


class Table:
    """Rows of `runs.jsonl.gz` by arm, cell and start.

    Keyword arguments of the methods select cells: `lr=0.1` those with that learning
    rate.
    """

    def __init__(self, rows: Iterable[Row]):
        self._rows = list(rows)

    def cells(self, arm: str, **choice: Any) -> list[dict[str, Any]]:
        """Returns the cells of `arm`, in the order they were run."""
        found = []
        for row in self._of(arm, choice):
            if row["cell"] not in found:
                found.append(row["cell"])
        return found

    def values(self, arm: str, metric: str, **choice: Any) -> np.ndarray:
        """Returns `metric` of every start, (starts,); nan where it is null.

        Raises:
            LookupError: if `choice` leaves no cell or several.
        """
        cells = self.cells(arm, **choice)
        if len(cells) != 1:
            raise LookupError(f"{len(cells)} cells of {arm!r} have {choice}, not one")
        rows = sorted(self._of(arm, choice), key=lambda row: row["start"])
        values = [row["metrics"][metric] for row in rows]
        return np.array([np.nan if v is None else v for v in values], float)

    def sweep(self, arm: str, metric: str, **choice: Any) -> np.ndarray:
        """Returns `metric` of every cell, (cells, starts)."""
        cells = self.cells(arm, **choice)
        return np.stack([self.values(arm, metric, **cell) for cell in cells])

    def best(
        self, arm: str, by: str = "validation_accuracy", **choice: Any
    ) -> dict[str, Any]:
        """Returns the cell whose mean of `by` over the starts is largest."""
        means = np.nan_to_num(self.sweep(arm, by, **choice).mean(1), nan=-np.inf)
        return self.cells(arm, **choice)[int(means.argmax())]

    def tuned(
        self, arm: str, metric: str, by: str = "validation_accuracy", **choice: Any
    ) -> np.ndarray:
        """Returns `metric` of every start in the best cell."""
        return self.values(arm, metric, **self.best(arm, by, **choice))

    def over(
        self, arm: str, number: str, metric: str = "test_accuracy"
    ) -> dict[Any, np.ndarray]:
        """Returns `metric` of every start in the best cell of each `number`."""
        values = dict.fromkeys(cell[number] for cell in self.cells(arm))
        return {v: self.tuned(arm, metric, **{number: v}) for v in values}

    def gain(
        self, first: str, second: str, metric: str = "test_accuracy", **choice: Any
    ) -> np.ndarray:
        """Returns `metric` of one arm minus another's, each in its best cell."""
        return self.tuned(first, metric, **choice) - self.tuned(
            second, metric, **choice
        )

    def series(self, arm: str, name: str, **choice: Any) -> np.ndarray:
        """Returns a series of every start, (starts, points)."""
        rows = sorted(self._of(arm, choice), key=lambda row: row["start"])
        values = [[np.nan if v is None else v for v in r["series"][name]] for r in rows]
        return np.array(values, float)

    def reached(
        self,
        arm: str,
        level: float,
        name: str = "test_accuracy",
        *,
        along: str = "step",
        **choice: Any,
    ) -> np.ndarray:
        """Returns the steps until `name` is at `level`, (starts,), or infinity."""
        above = self.series(arm, name, **choice) >= level
        steps = self.series(arm, along, **choice)[0]
        return np.where(above.any(1), steps[above.argmax(1)], np.inf)

    def rates(self, by: str = "validation_accuracy") -> Iterator[tuple[str, bool]]:
        """Yields every choice of a learning rate, and whether it is at its grid's edge.

        That is one for each arm and setting of the other numbers of its cells.
        """
        for arm in dict.fromkeys(row["arm"] for row in self._rows):
            groups: dict[str, dict[str, Any]] = {}
            for cell in self.cells(arm):
                others = {key: value for key, value in cell.items() if key != "lr"}
                name = ", ".join([arm, *(f"{k} {v}" for k, v in others.items())])
                groups.setdefault(name, others)
            for name, others in groups.items():
                rows = self._of(arm, others)
                grid = {row["cell"].get("lr") for row in rows}
                if None not in grid and len(grid) > 1 and by in rows[0]["metrics"]:
                    best = self.best(arm, by, **others)["lr"]
                    yield name, best in (min(grid), max(grid))

    def diverged(self) -> int:
        """Returns how many runs diverged, in all arms and cells."""
        return sum(row["metrics"].get("diverged") == 1 for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _of(self, arm: str, choice: dict[str, Any]) -> list[Row]:
        return [
            row
            for row in self._rows
            if row["arm"] == arm
            and all(row["cell"].get(key) == value for key, value in choice.items())
        ]
