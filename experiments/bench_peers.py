"""Time of one layer next to flax.linen and PyTorch, and the share of the memory floor.

    python -m experiments.bench_peers --out runs/peers

The floor of an operation is the bytes it must move at the speed of a copy measured in
the same turns. All competitors run in turns, in both orders; figures are medians.
The process starts itself again with malloc told to keep large buffers: otherwise every
framework spends up to half its time on page faults.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

import jaxbn

KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
# Height and width, channels: the activations of ResNet-50; then dense layers.
RESNET = (
    (112, 64), (56, 64), (56, 128), (56, 256), (28, 128), (28, 256), (28, 512),
    (14, 256), (14, 512), (14, 1024), (7, 512), (7, 2048),
)  # fmt: skip
DENSE = ((256, 512), (1024, 1024), (4096, 1024), (8192, 1024))
# Passes over an array of the size of x that nobody can save.
FLOOR = {"inference": 2, "forward": 3, "forward+backward": 8}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shapes(batches):
    convolutional = [(b, s, s, c) for b in batches for s, c in RESNET]
    return convolutional + list(DENSE)


def ours(operation, implementation, activation, x, dy):
    channels = x.shape[-1]
    state = jaxbn.init_state(channels)
    scale, bias = jnp.ones(channels), jnp.zeros(channels)
    options = {"activation": activation, "implementation": implementation}

    def forward(x, scale, bias):
        if operation == "inference":
            return jaxbn.batch_norm_inference(x, state, scale, bias, **options), state
        return jaxbn.batch_norm(x, state, scale, bias, **options)

    return _jax(operation, forward, (x, scale, bias), dy)


def flax(operation, activation, x, dy):
    layer = nn.BatchNorm(operation == "inference", dtype=x.dtype)
    variables = layer.init(jax.random.key(0), x[:1])

    def forward(x, scale, bias):
        params = {"scale": scale, "bias": bias}
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, new = layer.apply(given, x, mutable="batch_stats")
        return (nn.relu(y) if activation else y), new

    channels = x.shape[-1]
    return _jax(operation, forward, (x, jnp.ones(channels), jnp.zeros(channels)), dy)


def _jax(operation, forward, arguments, dy):
    def both(*arguments):
        y, pull, new = jax.vjp(forward, *arguments[:-1], has_aux=True)
        return y, new, pull(arguments[-1])

    backward = operation == "forward+backward"
    arguments = (*arguments, dy) if backward else arguments
    compiled = jax.jit(both if backward else forward)
    return lambda: jax.block_until_ready(compiled(*arguments))


def pytorch(operation, activation, x, dy):
    def tensor(array):
        wide = torch.from_numpy(np.asarray(array, np.float32))
        moved = wide.to(TYPES[array.dtype.name])
        if array.ndim == 2:
            return moved
        return moved.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    module = torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d
    layer = module(x.shape[-1]).train(operation != "inference")
    values, cotangent = tensor(x), tensor(dy)
    values.requires_grad_(operation == "forward+backward")

    def run():
        with torch.set_grad_enabled(operation == "forward+backward"):
            y = layer(values)
            y = torch.relu(y) if activation else y
        if operation == "forward+backward":
            inputs = (values, layer.weight, layer.bias)
            torch.autograd.grad(y, inputs, cotangent)

    return run


def copy(x):
    """A copy by all threads between two arrays that exist."""
    source = torch.from_numpy(np.array(x).view(np.uint8))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def in_turns(functions, rounds):
    """Smallest, median and upper quartile of each, in milliseconds."""
    for run in functions.values():
        run()
        run()
    times = {name: [] for name in functions}
    for number in range(rounds):
        for name in list(functions)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            functions[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.percentile(t, (0, 50, 75)).tolist() for name, t in times.items()}


def measure(shape, dtype, operation, activation, rounds):
    generator = np.random.default_rng(0)
    x, dy = (jnp.asarray(generator.normal(size=shape), dtype) for _ in range(2))
    call = (operation, activation, x, dy)
    functions = {
        "copy": copy(x),
        "flax": flax(*call),
        "torch": pytorch(*call),
        "xla": ours(operation, "xla", *call[1:]),
        "auto": ours(operation, None, *call[1:]),
    }
    times = in_turns(functions, rounds)
    floor = FLOOR[operation] / 2 * times["copy"][1] / times["auto"][1]
    ratios = {name: times[name][1] / times["auto"][1] for name in PEERS}
    best = {name: times[name][0] / times["auto"][0] for name in PEERS}
    return {
        "shape": "x".join(map(str, shape)), "dtype": dtype, "operation": operation,
        "activation": activation, "ms": times, "ratio": ratios,
        "ratio of best": best, "floor": floor,
        "GB/s": 2e-6 * x.nbytes / times["copy"][1],
    }  # fmt: skip


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def line(record):
    first = [record[k] or "-" for k in ("shape", "dtype", "operation", "activation")]
    times = [f"{record['ms'][k][1]:.2f}" for k in ("flax", "torch", "xla", "auto")]
    ratios = [f"{record['ratio'][k]:.2f}" for k in ("flax", "torch", "xla")]
    cells = [*first, *times, *ratios, f"{100 * record['floor']:.0f} %"]
    return f"| {' | '.join(cells)} |"


def summary(records):
    keys = ("dtype", "operation", "activation")
    for key in dict.fromkeys(tuple(r[k] for k in keys) for r in records):
        mine = [r for r in records if tuple(r[k] for k in keys) == key]
        means = [geometric_mean([r["ratio"][n] for r in mine]) for n in PEERS]
        best = [geometric_mean([r["ratio of best"][n] for r in mine]) for n in PEERS]
        worst = min(r["ratio"]["xla"] for r in mine)
        floor = geometric_mean([r["floor"] for r in mine])
        cells = [k or "-" for k in key] + [f"{m:.2f}" for m in (*means, worst, *best)]
        yield f"| {' | '.join(cells)} | {100 * floor:.0f} % |"


PEERS = ("flax", "torch", "xla")
KEY = "type | operation | activation"
RATIOS = "flax / auto | torch / auto | xla / auto"
HEADER = (
    f"| shape | {KEY} | flax, ms | torch, ms | xla, ms | auto, ms | {RATIOS} | floor |"
)
MEANS = f"| {KEY} | {RATIOS} | smallest xla / auto | best: {RATIOS} | floor |"


def rule(header):
    return "|" + "---|" * (header.count("|") - 1)


def main():
    if not KEEP_BUFFERS.items() <= os.environ.items():
        os.environ.update(KEEP_BUFFERS)
        command = [sys.executable, "-m", "experiments.bench_peers", *sys.argv[1:]]
        os.execv(sys.executable, command)
    parser = argparse.ArgumentParser(description="One layer next to its peers.")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--operations", nargs="*", default=list(FLOOR))
    parser.add_argument("--every", type=int, default=1, help="measure each n-th shape")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"{HEADER}\n{rule(HEADER)}", flush=True)
    records = []
    choices = (options.types, options.operations, (None, "relu"))
    for dtype, operation, activation in itertools.product(*choices):
        for shape in shapes(options.batches)[:: options.every]:
            record = measure(shape, dtype, operation, activation, options.rounds)
            records.append(record)
            print(line(record), flush=True)
    means = "\n".join([MEANS, rule(MEANS), *summary(records)])
    print(f"\n{means}")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "malloc": KEEP_BUFFERS,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "native": jaxbn.implementations()["native"],
    }
    content = {"settings": settings, "records": records}
    (options.out / "peers.json").write_text(json.dumps(content, indent=1))
    table = "\n".join([HEADER, rule(HEADER), *map(line, records)])
    (options.out / "peers.md").write_text(f"{means}\n\n{table}\n")


if __name__ == "__main__":
    main()
