"""Small runs of `train --config`, in processes of their own that can be killed."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

TOP = Path(__file__).parents[3]
TINY = {
    "config": "cifar10-resnet20",
    "source": "fake",
    "depth": 8,
    "image-size": 8,
    "fake-train-examples": 64,
    "fake-eval-examples": 20,
    "batch-size": 16,
    "steps": 12,
    "log-every": 1,
    "checkpoint-every": 4,
    "eval-every": 6,
    "process-timeout": 20,
}


def command(out, *flags, **options):
    """The command line of a run; `resume` is a flag."""
    given = {key.replace("_", "-"): value for key, value in options.items()}
    words = [f"--{k}={v}" for k, v in (TINY | given).items() if v is not None]
    program = [sys.executable, "-m", "experiments", "train"]
    return [*program, "--out", str(out), *words, *flags]


def start(out, cache, *flags, within=(), **options):
    """A process of a run, under way; `cache` keeps programs compiled for the next."""
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return subprocess.Popen(
        [*within, *command(out, *flags, **options)],
        cwd=TOP,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_all(out, cache, *flags, processes, devices=8, second=((), {}), **options):
    """The processes of a run on this machine, under way.

    `second` are flags and options that process 1 has besides, or in place of others.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = {"out": out, "cpu_devices": devices // processes, "coordinator": address}
    running = []
    for number in range(processes):
        more, other = second if number == 1 else ((), {})
        given = own | {"processes": processes, "process_id": number} | options | other
        place = given.pop("out")
        running.append(start(place, cache, *flags, *more, **given))
    return running


def end(*running, timeout=240):
    """Waits for processes: their exit codes, and what they wrote to stderr."""
    found = [process.communicate(timeout=timeout) for process in running]
    return [p.returncode for p in running], [errors for _, errors in found]


def train(out, cache, *flags, processes=1, **options):
    """A whole run, which must succeed."""
    if processes == 1:
        running = [start(out, cache, *flags, cpu_devices=8, **options)]
    else:
        running = start_all(out, cache, *flags, processes=processes, **options)
    codes, errors = end(*running)
    assert codes == [0] * processes, errors
    return out


def rows(out, name="metrics"):
    lines = (out / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_for_step(running, step):
    """Reads the process's stderr until it has told of `step`."""
    for line in running.stderr:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return
    raise AssertionError("it ended before")


def wait_for_a_save(out, running):
    """Looks until a checkpoint is being written, or the process has ended."""
    folder, begin = out / "checkpoints", time.monotonic()
    while running.poll() is None and time.monotonic() - begin < 120:
        if folder.is_dir() and any(not p.name.isdecimal() for p in folder.iterdir()):
            return
        time.sleep(0.001)


def write_idx(folder, *, prefix, count):
    """Writes compressed IDX files of `count` small images and their labels."""
    rng = np.random.default_rng(0)
    for kind, shape in (("images-idx3", (count, 8, 8)), ("labels-idx1", (count,))):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
        values = rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
        path = folder / f"{prefix}-{kind}-ubyte.gz"
        path.write_bytes(gzip.compress(header + values))


def results(out):
    """What two runs must share to be the same: metrics and the last checkpoint."""
    last = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.PyTreeCheckpointer() as reader:  # whatever devices there are
        tree = reader.metadata(last / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
        state = reader.restore(last / "state", restore_args=as_numpy)
    flat = ocp.tree.to_flat_dict(state, sep="/")
    return (
        {name: value.tobytes() for name, value in flat.items()},
        (out / "metrics.jsonl").read_text(),
        (out / "summary.json").read_text(),
    )
