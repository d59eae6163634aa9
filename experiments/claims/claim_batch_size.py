"""E10: small batches make batch normalization unstable; group normalization is not.

Source: Wu and He, Group normalization, 2018, table 2; Ioffe, Batch renormalization,
2017. Convolutions share statistics over the batch and all positions (claim C22).

Measured: MNIST-1D, batches of 2, 8 and 32, the learning rate chosen per net and size. A
net of three convolutions, whose last layer has 5 positions and so 10 values per feature
at size 2, with batch, group and batch re-normalization; and a dense net, with 2 values
per feature, with batch and layer normalization. All sizes see the same number of
examples, as in the paper; small ones then have more updates, so the same is shown for
equal numbers of updates. The loss is the test accuracy at size 32 minus at size 2; what
decides is how much larger it is than that of group normalization. Batch normalization
is also evaluated with exact population statistics (`jaxbn.deploy.recalibrate`).

Refuted if: going from 32 to 2 costs the convolutional net with batch normalization less
than two points more than with group normalization; if convolution statistics differ
from those over batch and positions in the fourth digit.

Command: python -m experiments run batch-size --preset quick
Runtime: quick about 5 minutes on two cores.
"""

import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.claims.lab import figures, norms, splits
from experiments.claims.lab.engine import Plan, train
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import conv, mlp
from experiments.claims.lab.population import exact_accuracy
from experiments.claims.lab.rows import Row, row, rows_of
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

CONV = ("none conv", "bn conv", "gn conv", "renorm conv")
DENSE = ("bn dense", "ln dense")
SIZES = (2, 8, 32)
VALUES = {"conv": 5, "dense": 1}  # per feature and example, in the last hidden layer
EXAMPLES, UPDATES = 16384, 2048  # as many of the one or of the other for all sizes


def measure(arm: str, setting: Setting) -> list[Row]:
    """Trains one net with every size of batch."""
    if arm == "definition":
        return definitions(setting)
    norm, kind = arm.split()
    net = {"conv": conv, "dense": mlp}[kind](norms.NORMS[norm]())
    found = []
    for size, steps in lengths(norm, small=setting.preset == "smoke"):
        plan = Plan(
            net,
            splits.mnist1d(starts=setting.starts, seed=setting.seed),
            cells=[
                {"size": size, "steps": steps, "lr": lr * size / 32}
                for lr in setting.pick((0.3,), (0.03, 0.1, 0.3, 1.0, 3.0))
            ],
            steps=steps,
            batch=size,
            evals=1,
            seed=setting.seed,
        )
        outcome = train(plan)
        if arm == "bn conv":
            exact = conv(norms.batch(momentum=0.0))
            outcome.series["exact_accuracy"] = exact_accuracy(plan, outcome, exact)
        found += rows_of(outcome, arm)
    return found


def lengths(norm: str, *, small: bool) -> list[tuple[int, int]]:
    """Returns sizes and steps: equal examples, then equal updates."""
    share = 256 if small else 1
    found = [(size, EXAMPLES // size // share) for size in SIZES]
    if norm not in ("none", "renorm"):
        found += [(size, UPDATES // share) for size in SIZES[::2]]
    return found


def definitions(setting: Setting) -> list[Row]:
    """Returns to how many digits the statistics are those over batch and positions."""
    found = []
    for start in range(setting.starts):
        rng = np.random.default_rng([setting.seed, start])
        x = rng.normal(3, 2, (4, 6, 6, 5)).astype(np.float32)
        _, state = jaxbn.batch_norm(jnp.asarray(x), jaxbn.init_state(5))
        wide = x.astype(float)
        expected = np.stack([wide.mean((0, 1, 2)), wide.var((0, 1, 2))])
        error = np.abs(np.stack([state.mean, state.var]) / expected - 1).max()
        found.append(row("definition", start, {}, {"digits": -np.log10(error + 1e-9)}))
    return found


def damage(table: Table, arm: str, *, updates: bool = False) -> np.ndarray:
    """Returns what the smallest batch costs against the largest."""
    large, small = (
        table.tuned(arm, "test_accuracy", **cell(size, updates=updates))
        for size in (SIZES[-1], SIZES[0])
    )
    return large - small


def cell(size: int, *, updates: bool = False) -> dict[str, int]:
    """Returns which cells have that size of batch."""
    return {"size": size, "steps": UPDATES if updates else EXAMPLES // size}


def more(first: str, second: str, *, updates: bool = False):
    """Returns the rule's number: how much more small batches cost one arm."""

    def values(table: Table) -> np.ndarray:
        one, other = (damage(table, arm, updates=updates) for arm in (first, second))
        return one - other

    return values


def exact(table: Table) -> np.ndarray:
    """Returns what exact statistics add at the smallest size."""
    best = table.best("bn conv", **cell(SIZES[0]))
    own, running = (
        table.values("bn conv", f"{name}_accuracy", **best) for name in ("exact", "test")
    )
    return own - running


def draw(figure, table: Table) -> None:
    """Draws the test error against the number of values that share statistics."""
    axes = figure.subplots()
    for arm in (*CONV, *DENSE):
        norm, kind = arm.split()
        sizes = [n for n in SIZES if table.cells(arm, **cell(n))]
        errors = 100 - 100 * np.stack(
            [table.tuned(arm, "test_accuracy", **cell(n)) for n in sizes]
        )
        x = VALUES[kind] * np.array(sizes)
        style = {"color": figures.color(arm), "ls": "-" if kind == "conv" else "--"}
        axes.plot(x, errors.mean(1), "o", label=arm, **style)
        axes.plot(x, errors, ".", ms=3, alpha=0.4, color=figures.color(arm))
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    axes.set_xlabel("values per feature (batch size times positions)")
    axes.set_ylabel("test error, %")
    axes.legend()


EXPERIMENT = Experiment(
    number="E10",
    name="batch-size",
    title="Small batches",
    arms=(*CONV, *DENSE, "definition"),
    measure=measure,
    rules=(
        Rule("C11", more("bn conv", "gn conv")),
        Rule("C22", lambda t: t.values("definition", "digits")),
        Rule("C11.dense", more("bn dense", "ln dense")),
        Rule("C11.updates", more("bn conv", "gn conv", updates=True)),
        Rule("C11.dense-updates", more("bn dense", "ln dense", updates=True)),
        Rule("C11.renorm", more("bn conv", "renorm conv")),
        Rule("C11.exact", exact),
    ),
    draw=draw,
    alt="Test error against the number of values that share statistics.",
)
