"""An experiment that costs nothing, for what does not depend on what is measured.

Measured: coins; the one called "bn" has a larger mean, by what `EDGE` says.
"""

import numpy as np

from experiments import claims
from experiments.claims.lab import figures
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.rows import row
from experiments.claims.lab.rules import Rule

EDGE = {"clear": 3.0, "close": 0.45}  # C20a matters from 0.5


def measure(arm: str, setting: Setting) -> list[dict]:
    rng = np.random.default_rng([setting.seed, len(arm)])

    def drawn() -> dict:
        return {k: rng.normal(v * (arm == "bn"), 0.2) for k, v in EDGE.items()}

    return [row(arm, start, {}, drawn()) for start in range(setting.starts)]


def gain(name: str):
    return lambda t: t.values("bn", name) - t.values("none", name)


def draw(figure, table) -> None:
    groups = {arm: table.values(arm, "clear") for arm in ("none", "bn")}
    figures.strips(figure.subplots(), groups, label="coins")


def coin(name: str, rules: dict[str, str]) -> Experiment:
    return Experiment(
        number="E02",
        name=name,
        title="Coins",
        arms=("none", "bn"),
        measure=measure,
        rules=tuple(Rule(key, gain(metric)) for key, metric in rules.items()),
        draw=draw,
        alt="Coins.",
    )


COINS = {
    "clear": coin("clear", {"C02": "clear", "C02.layer": "clear"}),
    "close": coin("close", {"C20a": "close"}),
}


def use_coins(patch) -> None:
    """Adds the coins to the experiments; workers in other processes lack them."""
    known = claims.experiments()
    patch.setattr(claims, "experiments", lambda: {**known, **COINS})
