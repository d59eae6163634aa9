"""E23: values are neither all 0 nor very large, and alike in every layer.

Source: the notes; Ioffe and Szegedy, 2015, section 3.3 (a conjecture: singular values
of the layers' Jacobians close to 1).

Measured: MNIST-1D with ten hidden ReLU layers of 48 units, He weights times 0.5, 1 and
2, best rate. At four moments of training, in inference: the root mean square of what
the activations of each layer see, as decades from 1, worst layer and moment; its spread
over the layers; the smallest share of positive values of a layer; and the median
singular value of the Jacobian from the inputs to the last layer.

Refuted if: normalization does not bring the sizes half a decade closer to 1, on average
over the three starts; if sizes spread over the layers less than twice as much without
it, with He weights.

Command: python -m experiments run layers --preset quick
Runtime: quick about 120 s of one core.
"""

import numpy as np

from experiments.claims.lab import figures, norms, probes, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import mlp
from experiments.claims.lab.rows import Row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

ARMS = ("none", "bn")
GAINS = (0.5, 1.0, 2.0)
FAR = 6.0  # decades: as good as zero or infinite


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains ten layers and looks at what they see."""
    plan = Plan(
        mlp(norms.NORMS[arm](), widths=(48,) * 10),
        splits.mnist1d(starts=setting.starts, seed=setting.seed),
        cells=[
            {"gain": gain, "lr": lr}
            for gain in GAINS
            for lr in setting.pick((0.01,), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3))
        ],
        steps=setting.pick(20, 400),
        batch=64,
        evals=setting.pick(2, 4),
        seed=setting.seed,
        optimizer="momentum",
        probe=probes.sizes,
    )
    outcome = train(plan)
    size = finite(outcome.series.pop("size"))  # (starts, cells, evals, layers)
    singular = np.abs(finite(outcome.series["singular"]))
    added = {
        "off": np.abs(size).max((2, 3))[..., None],
        "spread": size.std(3)[:, :, -1:],
        "singular_off": singular.max(2)[..., None],
        "positive": outcome.series["positive"].min(3),
    }
    outcome.series.update(added)
    rows, curves = rows_of(outcome, arm), size[:, :, -1]
    for row in rows:
        cell = list(plan.cells).index(row["cell"])
        row["series"] = {"size": curves[row["start"], cell].round(4).tolist()}
    return rows


def finite(x: np.ndarray) -> np.ndarray:
    """Returns decades, at most six, which what is not finite has too."""
    return np.clip(np.nan_to_num(x, nan=FAR), -FAR, FAR)


def closer(table: Table, metric: str, gain: float) -> np.ndarray:
    """Returns a number of the plain net minus that of the normalized one."""
    plain, normalized = (table.tuned(arm, metric, gain=gain) for arm in ARMS)
    return plain - normalized


def alike(table: Table) -> np.ndarray:
    """Returns log2 of how much more sizes spread over the layers without it."""
    plain, normalized = (table.tuned(arm, "spread", gain=1.0) for arm in ARMS)
    return np.log2(plain / normalized)


def draw(figure, table: Table) -> None:
    """Draws the size in every layer after training."""
    axes = figure.subplots()
    for arm in ARMS:
        for gain, style in zip(GAINS, ("--", "-", ":"), strict=True):
            values = table.series(arm, "size", **table.best(arm, gain=gain))
            layers = np.arange(1, values.shape[1] + 1)
            label = f"{figures.NAMES[arm]}, {gain} He"
            own = {"color": figures.color(arm), "ls": style}
            axes.plot(layers, values.T, alpha=0.2, lw=0.7, **own)
            axes.plot(layers, values.mean(0), lw=2, label=label, **own)
    axes.set_xlabel("layer")
    axes.set_ylabel("log10 of the root mean square")
    axes.legend()


EXPERIMENT = Experiment(
    number="E23",
    name="layers",
    title="The size of values in every layer",
    arms=ARMS,
    measure=measure,
    rules=(
        Rule("C17b", lambda t: np.mean([closer(t, "off", g) for g in GAINS], 0)),
        Rule("C17b.he", lambda t: closer(t, "off", 1.0)),
        Rule("C17b.jacobian", lambda t: closer(t, "singular_off", 1.0)),
        Rule("C25", alike),
    ),
    draw=draw,
    alt="Size of the values in every layer after training.",
)
