"""E15: batch normalization costs very little compute.

Source: the notes disagree ("very little", "extra computation"); Jung et al.,
Restructuring batch normalization, 2018: a quarter of the time of DenseNet-121.

Measured: one training step (forward and backward) and one inference of a convolutional
net with 16, 32 and 64 channels on 128 images of 16 x 16, with and without
normalization, in turns, the fastest of several calls; what the compiler counts as
operations (exact); folded into the weights (`jaxbn.deploy.fold`) it is the plain net.

Refuted if: a training step takes 10 % longer or more. These are times: they are not the
same from run to run, unlike all other numbers here.

Command: python -m experiments run cost --preset quick
Runtime: quick about 20 s on two busy cores (standard: twice that).
"""

import time

import jax
import numpy as np

from experiments.claims.lab import figures, norms
from experiments.claims.lab.engine import cross_entropy
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import conv
from experiments.claims.lab.plan import Context
from experiments.claims.lab.rows import Row, row
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

NAMES = ("none", "bn", "gn", "ln")
SIDE, BATCH = 16, 128


def measure(arm: str, setting: Setting) -> list[Row]:
    """Times all nets in turns; `arm` is "training" or "inference"."""
    key = jax.random.key(setting.seed)
    x = jax.random.normal(key, (BATCH, SIDE * SIDE))
    labels = jax.random.randint(key, (BATCH,), 0, 10)
    calls, counted = {}, {}
    for name in setting.pick(NAMES[:2], NAMES):
        net = conv(norms.NORMS[name](), shape=(SIDE, SIDE), channels=(16, 32, 64))
        params, state = net.init(key, {})
        call = {"training": training, "inference": inference}[arm](net, state)
        compiled = jax.jit(call).lower(params, x, labels).compile()
        counted[name] = compiled.cost_analysis()
        calls[name] = (compiled, (params, x, labels))
    found = []
    for start in range(setting.starts):
        times = fastest(calls, repeats=setting.pick(5, 40))
        for name, seconds in times.items():
            metrics = {
                "milliseconds": 1000 * seconds,
                "operations": counted[name].get("flops", np.nan),
                "bytes": counted[name].get("bytes accessed", np.nan),
            }
            found.append(row(arm, start, {"norm": name}, metrics))
    return found


def training(net, state):
    """Returns the loss and gradient of a step."""

    def loss(params, x, labels):
        context = Context(True, jax.random.key(0), {})
        logits, new, _ = net.apply(params, state, x, context)
        return cross_entropy(logits, labels), new

    return jax.value_and_grad(loss, has_aux=True)


def inference(net, state):
    """Returns the logits with running statistics."""

    def logits(params, x, _labels):
        context = Context(False, jax.random.key(0), {})
        return net.apply(params, state, x, context)[0]

    return logits


def fastest(calls: dict, *, repeats: int) -> dict[str, float]:
    """Returns the seconds of the fastest call of each, measured in turns."""
    best = dict.fromkeys(calls, np.inf)
    for _ in range(repeats):
        for name, (call, arguments) in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def extra(table: Table, arm: str, metric: str) -> np.ndarray:
    """Returns how much more the normalized net takes, as a share of the plain one."""
    plain, normalized = (
        table.values(arm, metric, norm=name) for name in ("none", "bn")
    )
    return normalized / plain - 1


def draw(figure, table: Table) -> None:
    """Draws the extra time of every normalization."""
    panels = figure.subplots(1, 2)
    for axes, arm in zip(panels, ("training", "inference"), strict=True):
        plain = table.values(arm, "milliseconds", norm="none")
        others = [cell["norm"] for cell in table.cells(arm)[1:]]
        groups = {
            name: 100 * (table.values(arm, "milliseconds", norm=name) / plain - 1)
            for name in others
        }
        figures.strips(axes, groups, label=f"extra time, {arm}, %", zero=True)


EXPERIMENT = Experiment(
    number="E15",
    name="cost",
    title="Cost",
    arms=("training", "inference"),
    measure=measure,
    rules=(
        Rule("C18", lambda t: 0.1 - extra(t, "training", "milliseconds")),
        Rule("C18.operations", lambda t: 0.1 - extra(t, "training", "operations")),
        Rule("C18.inference", lambda t: 0.1 - extra(t, "inference", "milliseconds")),
    ),
    draw=draw,
    alt="Extra time of each normalization in training and inference, in percent.",
    exact=False,
)
