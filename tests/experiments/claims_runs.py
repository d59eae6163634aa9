"""An experiment that costs nothing, for what does not depend on what is measured.

Measured: coins; the one called "bn" has a larger mean, by what `EDGE` says.
"""

import numpy as np

from experiments import claims as package
from experiments.claims.lab import figures
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.rows import row
from experiments.claims.lab.rules import Rule, claims

# The name of a coin: its rule, and its mean in units of what matters to that rule.
EDGE = {"clear": ("C02", 10.0), "close": ("C20a", 0.9)}


def measure(arm: str, setting: Setting) -> list[dict]:
    rng = np.random.default_rng([setting.seed, len(arm)])

    def drawn() -> dict:
        return {
            name: rng.normal(edge * (arm == "bn"), 0.4) * claims().rules[rule].least
            for name, (rule, edge) in EDGE.items()
        }

    return [row(arm, start, {}, drawn()) for start in range(setting.starts)]


def gain(name: str):
    return lambda t: t.values("bn", name) - t.values("none", name)


def draw(figure, table) -> None:
    groups = {arm: table.values(arm, "clear") for arm in ("none", "bn")}
    figures.strips(figure.subplots(), groups, label="coins")


def coin(name: str, given: dict[str, str]) -> Experiment:
    return Experiment(
        number="E02",
        name=name,
        title="Coins",
        arms=("none", "bn"),
        measure=measure,
        rules=tuple(Rule(key, gain(metric)) for key, metric in given.items()),
        draw=draw,
        alt="Coins.",
    )


COINS = {
    "clear": coin("clear", {"C02": "clear", "C02.layer": "clear"}),
    "close": coin("close", {"C20a": "close"}),
}


def use_coins(patch) -> None:
    """Adds the coins to the experiments; workers in other processes lack them."""
    known = package.experiments()
    patch.setattr(package, "experiments", lambda: {**known, **COINS})
