"""The declaration of a claim: quotes, arms, rules, a measurement, a figure."""

import inspect
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from experiments.claims.lab.rows import Row
from experiments.claims.lab.table import Table

Preset = Literal["smoke", "quick", "standard"]
T = TypeVar("T")

_STARTS = {"smoke": 2, "quick": 5, "standard": 10}


@dataclass(frozen=True)
class Setting:
    """The amount to measure, and the seed of the random numbers.

    Attributes:
        preset: "smoke" shows that it runs and decides nothing, "quick" decides,
            "standard" has more starts.
        seed: of splits, weights, batches and noise.
        data_dir: directory with the IDX files of MNIST. Default: the digits.
    """

    preset: Preset
    seed: int
    data_dir: Path | None = None

    @property
    def starts(self) -> int:
        """Independent repetitions."""
        return _STARTS[self.preset]

    def pick(self, smoke: T, quick: T, standard: T | None = None) -> T:
        """Returns the value for the preset; `standard` is `quick` unless given."""
        if self.preset == "smoke":
            return smoke
        return quick if self.preset == "quick" or standard is None else standard


class Quote(NamedTuple):
    """The sentence of a note, and its English."""

    text: str
    english: str = ""


@dataclass(frozen=True)
class Rule:
    """The rule that decides one claim.

    Attributes:
        claim: its number, such as "C01".
        text: what is claimed.
        effect: what the number of each start is, with its unit.
        least: the smallest effect that supports the claim.
        scale: what the forest plot divides by: a difference worth talking about.
        values: from the runs to one number for each start; large if the claim holds.
        literature: what published work says: "supported", "contradicted", "qualified".
            Only the rule that decides a claim has it; others are shown beside it.
    """

    claim: str
    text: str
    effect: str
    least: float
    scale: float
    values: Callable[[Table], np.ndarray]
    literature: str = ""

    @property
    def headline(self) -> bool:
        """Tells whether it decides the claim."""
        return bool(self.literature)


@dataclass(frozen=True)
class Experiment:
    """A claim file.

    Attributes:
        number: "E01" to "E19".
        name: what `run` calls it.
        title: one line.
        arms: what is compared; each is measured, stored and resumed by itself.
        measure: `measure(arm, setting)` returns the rows of an arm.
        rules: one or more decisions.
        draw: `draw(figure, table)` fills a matplotlib figure.
        alt: what the figure shows, for those who cannot see it.
        exact: whether the same seed gives the same bits; False for measured times.
    """

    number: str
    name: str
    title: str
    arms: Sequence[str]
    measure: Callable[[str, Setting], list[Row]]
    rules: Sequence[Rule]
    draw: Callable[[Any, Table], None]
    alt: str
    exact: bool = True

    @property
    def quotes(self) -> list[Quote]:
        """The sentences of the notes."""
        found = self._notes().get("quotes", [])
        return [Quote(**{k: _joined(v) for k, v in q.items()}) for q in found]

    @property
    def literature(self) -> str:
        """The statements of published work, with contradictions."""
        return _joined(self._notes()["literature"])

    def _notes(self) -> dict[str, Any]:
        module = sys.modules[self.measure.__module__].__file__ or ""
        text = Path(module).with_name("notes.toml").read_text()
        return tomllib.loads(text)[self.number]

    @property
    def document(self) -> str:
        """The docstring of the claim file."""
        return inspect.getdoc(sys.modules[self.measure.__module__]) or ""


def _joined(text: str) -> str:
    return " ".join(text.split())
