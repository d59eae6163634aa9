"""E15: batch normalization costs very little compute.

Source: the notes disagree ("very little", "extra computation"); Jung et al.,
Restructuring batch normalization, 2018: a quarter of the time of DenseNet-121.

Measured: one training step (forward and backward) and one inference of a convolutional
net with 16, 32 and 64 channels on images of 16 x 16, without normalization and with it,
for batches of 8, 32 and 128, and of 128 in bfloat16; inference for 128 only.
Every start is a process of its own, in which all nets take turns and the fastest of
100 calls counts; nothing else is measured meanwhile. What the compiler counts as
operations is exact. Folded into the weights (`jaxbn.deploy.fold`) it is the plain net.

Refuted if: a training step with a batch of 128 takes 10 % longer or more. These are
times of one machine, for idle cores: they are not the same from run to run.

Command: python -m experiments run cost --preset quick
Runtime: quick about 4 minutes on two idle cores.
"""

import multiprocessing
import time
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.lab import norms
from experiments.claims.lab.engine import cross_entropy
from experiments.claims.lab.experiment import Experiment, Setting
from experiments.claims.lab.nets import conv
from experiments.claims.lab.plan import Context
from experiments.claims.lab.rows import Row, row
from experiments.claims.lab.rules import Rule
from experiments.claims.lab.table import Table

SIDE, SHAPE = 16, (16, 32, 64)
BATCHES, LARGE = (8, 32, 128), 128


def measure(arm: str, setting: Setting) -> list[Row]:
    """Times all nets in as many processes as there are starts, one after another."""
    sizes = setting.pick((LARGE,), BATCHES)
    programs = [("training", n, "float32") for n in sizes]
    programs += [("training", LARGE, "bfloat16"), ("inference", LARGE, "float32")]
    cells = [
        {"pass": call, "norm": norm, "batch": batch, "dtype": dtype}
        for call, batch, dtype in programs
        for norm in ("none", "bn")
    ]
    found = []
    context, repeats = multiprocessing.get_context("spawn"), setting.pick(3, 100)
    for start in range(setting.starts):
        with context.Pool(1) as pool:
            timed = pool.apply(times, (cells, [setting.seed, start], repeats))
        found += [row(arm, start, *one) for one in zip(cells, timed, strict=True)]
    return found


def times(
    cells: list[dict[str, Any]], seed: list[int], repeats: int
) -> list[dict[str, float]]:
    """Returns the fastest of several calls of each net, called in turns."""
    with futures.ThreadPoolExecutor() as pool:
        rngs = [np.random.default_rng(seed) for _ in cells]
        calls = list(pool.map(compiled, cells, rngs))
    best = np.full(len(calls), np.inf)
    for _ in range(repeats):
        for n, (call, arguments, _) in enumerate(calls):
            begin = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            best[n] = min(best[n], time.perf_counter() - begin)
    return [
        {"milliseconds": 1000 * seconds, "operations": counted}
        for seconds, (_, _, counted) in zip(best, calls, strict=True)
    ]


def compiled(cell: dict[str, Any], rng: np.random.Generator):
    """Returns a compiled call, its arguments, and how many operations it has."""
    dtype, size = jnp.dtype(cell["dtype"]), cell["batch"]
    net = conv(norms.NORMS[cell["norm"]](), shape=(SIDE, SIDE), channels=SHAPE)
    params, state = net.init(jax.random.key(rng.integers(2**31)), {})
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    x = jnp.asarray(rng.normal(size=(size, SIDE * SIDE)), dtype)
    arguments = params, x, jnp.asarray(rng.integers(0, 10, size))
    function = {"training": training, "inference": inference}[cell["pass"]](net, state)
    call = jax.jit(function).lower(*arguments).compile()
    return call, arguments, (call.cost_analysis() or {}).get("flops", np.nan)


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


def extra(table: Table, metric: str = "milliseconds", **choice: Any) -> np.ndarray:
    """Returns how much more the normalized net takes, as a share of the plain one."""
    cell = {"pass": "training", "batch": LARGE, "dtype": "float32", **choice}
    plain, normalized = (
        table.values("times", metric, norm=norm, **cell) for norm in ("none", "bn")
    )
    return normalized / plain - 1


def draw(figure, table: Table) -> None:
    """Draws the extra time against the batch size."""
    axes = figure.subplots()
    sizes = list(dict.fromkeys(cell["batch"] for cell in table.cells("times")))
    values = 100 * np.stack([extra(table, batch=n) for n in sizes])
    axes.plot(sizes, values.mean(1), "o-")
    axes.plot(sizes, values, ".", alpha=0.3, color="gray")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch size")
    axes.set_ylabel("extra time of a training step, %")


EXPERIMENT = Experiment(
    number="E15",
    name="cost",
    title="Cost",
    arms=("times",),
    measure=measure,
    rules=(
        Rule("C18", lambda t: 0.1 - extra(t)),
        Rule("C18.operations", lambda t: 0.1 - extra(t, "operations")),
        Rule("C18.inference", lambda t: 0.1 - extra(t, **{"pass": "inference"})),
        Rule("C18.bfloat16", lambda t: 0.1 - extra(t, dtype="bfloat16")),
    ),
    draw=draw,
    alt="Extra time of normalization against the batch size, in percent.",
    exact=False,
)
