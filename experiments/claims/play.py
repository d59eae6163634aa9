"""Trains one small net with and without normalizations, with numbers of your choice.

Run: python -m experiments.claims.play --batch 2 --steps 300 --rate 0.1
"""

import sys
from dataclasses import dataclass

from experiments.claims.lab import norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.figures import NAMES
from experiments.claims.lab.nets import mlp
from experiments.common.options import Positive, Rate, Seed, check_limits, parse
from experiments.common.tables import aligned


@dataclass(frozen=True)
class PlayConfig:
    """Trains a net of three hidden layers on MNIST-1D; five starts for each row."""

    batch: Positive = 32
    """Examples a step: what batch normalization takes its statistics from."""
    steps: Positive = 300
    """Steps of gradient descent with momentum."""
    rate: Rate = 0.1
    """Learning rate."""
    seed: Seed = 0
    """Seed of data, weights and batches."""


def main(config: PlayConfig) -> None:
    """Trains and prints the accuracies."""
    check_limits(config)
    rows = []
    for name in ("none", "bn", "ln"):
        plan = Plan(
            mlp(norms.NORMS[name](), inputs=40),
            splits.mnist1d(starts=5, seed=config.seed),
            cells=[{"lr": config.rate}],
            steps=config.steps,
            batch=config.batch,
            evals=1,
            seed=config.seed,
            optimizer="momentum",
        )
        series = train(plan).series
        found = [series[f"{part}_accuracy"][:, 0, -1] for part in ("train", "test")]
        shown = [
            f"{100 * v.mean():.0f} ({v.min():.2f} to {v.max():.2f})" for v in found
        ]
        rows.append([NAMES[name], *shown])
    print(aligned(["net", "training accuracy, %", "test accuracy, %"], rows))


if __name__ == "__main__":
    main(parse(PlayConfig, sys.argv[1:], prog="python -m experiments.claims.play"))
