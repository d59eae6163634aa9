"""The declaration of an experiment: arms, a measurement, rules, a figure."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from experiments.claims.lab.rows import Row
from experiments.claims.lab.rules import Quote, Rule, claims, module_of
from experiments.claims.lab.table import Table

Preset = Literal["smoke", "quick", "standard"]
T = TypeVar("T")

_STARTS = {"smoke": 2, "quick": 10, "standard": 10}
_LOOKS = {"smoke": 1, "quick": 1, "standard": 3}


def blocks(preset: Preset) -> list[int]:
    """Returns how many blocks of starts there are at each look of a preset."""
    looks = claims().looks[: _LOOKS[preset]]
    return [look // _STARTS["standard"] for look in looks]


@dataclass(frozen=True)
class Setting:
    """The amount to measure, and the seed of the random numbers.

    Attributes:
        preset: "smoke" shows that it runs and decides nothing, "quick" decides what
            one block of starts can, "standard" adds blocks where a claim is undecided.
        seed: of data, splits, weights, batches and noise of one block of starts.
        data_dir: directory with the IDX files of MNIST. Default: MNIST-1D.
    """

    preset: Preset
    seed: int
    data_dir: Path | None = None

    @property
    def starts(self) -> int:
        """Independent repetitions of one block."""
        return _STARTS[self.preset]

    def pick(self, smoke: T, quick: T, standard: T | None = None) -> T:
        """Returns the value for the preset; `standard` is `quick` unless given."""
        if self.preset == "smoke":
            return smoke
        return quick if self.preset == "quick" or standard is None else standard


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
        by: what the learning rate of an arm is chosen by.
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
    by: str = "validation_accuracy"
    exact: bool = True

    @property
    def claims(self) -> list[Rule]:
        """The rules that decide a claim."""
        return [rule for rule in self.rules if rule.headline]

    @property
    def quotes(self) -> list[Quote]:
        """The sentences of the notes."""
        return [quote for rule in self.claims for quote in rule.entry.quotes]

    @property
    def literature(self) -> str:
        """The statements of published work, with contradictions."""
        return " ".join(filter(None, (r.entry.literature for r in self.claims)))

    @property
    def document(self) -> str:
        """The docstring of the claim file."""
        return inspect.getdoc(module_of(self.measure)) or ""
