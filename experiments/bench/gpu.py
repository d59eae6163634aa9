"""Time of layers and of ResNet-50 steps on the GPU that is here.

The programs are those of `bench compiled`, compiled for the device that JAX finds,
beside PyTorch where it is installed. Of a layer the time of its kernels counts, of a
step that of training without waiting between steps. The floor of a layer is the bytes
that it must move, and its prediction the bytes that the text of its program says it
moves, both at the speed of a copy of one gigabyte. Every case is written when it is
done.
"""

import os
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import main as bench
from experiments.bench import pytorch
from experiments.bench.cases import FLOOR, RESNET50, Case
from experiments.bench.compilers import devices, layers, programs, steps
from experiments.bench.compilers.programs import Program
from experiments.bench.peers import copy, installed
from experiments.bench.scale import trained
from experiments.bench.turns import Run, back_to_back, of_kernels, spread
from experiments.common import environment, files
from experiments.common.errors import UserError, writing
from experiments.common.progress import StepProgress
from experiments.common.tables import markdown
from experiments.scale import config as scale_config
from experiments.scale.layout import make_layout

_OPERATIONS = {"layer": "forward+backward", "forward": "forward"}
COPIED = 2**30
"""Bytes of the array that is copied to measure the speed of memory."""

_STEP_NORMS = "flax", "jaxbn", "jaxbn-apart"


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns one record a case, and Markdown: a table of layers, and of steps."""
    require_gpu()
    record: dict[str, Any] = {"device": _device(), "copy, GB/s": _copy()}
    record |= {"layers": [], "steps": []}
    groups = plan(quick=config.quick, batch=config.batch)
    names = [group[0].name for group in groups]
    kept = programs.chosen(names, config.only)
    groups = [g for g, name in zip(groups, names, strict=True) if name in kept]
    compiled = _compiled([p for g in groups for p in g if p.kind != "step"])
    with StepProgress(len(groups)) as progress:
        for number, group in enumerate(groups):
            step = group[0].kind == "step"
            found = _steps(group) if step else _layers(group, compiled, record)
            record["steps" if step else "layers"].append(found)
            with writing(config.out):
                files.write_json(config.out / "gpu.json", record)
            progress.update(number + 1, group[0].name)
    return record, f"{_layer_table(record['layers'])}\n\n{_step_table(record['steps'])}"


def require_gpu() -> None:
    """Raises `UserError` where JAX finds no GPU."""
    if (found := jax.default_backend()) != "gpu":
        raise UserError(
            f"`gpu` must find a GPU, got only a {found}. Run it on a machine that has "
            "one, with the plugin of JAX for it; `compiled` needs no device."
        )


def plan(*, quick: bool, batch: int) -> list[list[Program]]:
    """Groups of programs that take turns: layers of ResNet-50, dense layers, steps."""
    some = ("jaxbn", "flax")
    everyone = (*some, "flax-two-pass", *(["haiku"] if installed("haiku") else []))
    images = [(batch, s, s, c) for s, c in RESNET50[:: 5 if quick else 1]]
    dense = [(4096, 1024), (8192, 4096), (65536, 1024)]
    chosen: list[tuple] = []
    for dtype in ("bfloat16",) if quick else ("bfloat16", "float32"):
        chosen += [(dtype, s, "none", "layer", everyone) for s in (*images, *dense)]
        for activation in ("relu", "add+relu"):
            chosen += [(dtype, s, activation, "layer", some) for s in images]
        chosen += [(dtype, s, "none", "forward", some) for s in images]
        if not quick:
            small = [(32, *shape[1:]) for shape in images]
            chosen += [(dtype, s, "none", "layer", some) for s in small]
    groups = [
        [program(kind, dtype, shape, activation, norm) for norm in norms]
        for dtype, shape, activation, kind, norms in chosen
    ]
    for dtype in ("bfloat16", "float32"):
        groups.append(
            [program("step", dtype, (batch,), "network", n) for n in _STEP_NORMS]
        )
    return groups


def program(kind, dtype, shape, activation, norm) -> Program:
    return Program(devices.HERE, kind, dtype, shape, activation, 1, "jit", norm)


def _device() -> dict[str, str | None]:
    """The device, and the driver where NVIDIA's tool tells it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        told = None
    return {
        "kind": jax.devices()[0].device_kind,
        "name and driver": told and told.strip(),
        "torch": environment.version("torch") if pytorch.device() else None,
        **{n: environment.version(n) for n in ("dm-haiku", "jax-cuda13-plugin")},
    }


def _copy() -> float:
    """Gigabytes a second that a copy reads and writes."""
    run = copy(jnp.ones(COPIED, jnp.uint8))
    times = back_to_back({"copy": run}, rounds=9, span=30)["copy"]
    return 2e-6 * COPIED / float(np.median(times))


def _compiled(wanted: list[Program]) -> dict[str, Any]:
    """Compiles layers, and what makes their arrays, beside each other."""
    makers = {_array_name(p.shape, p.dtype): partial(_random, p) for p in wanted}
    makers |= {p.name: partial(layers.lower, p) for p in wanted}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Traced one after the other: Python does no two at once.
        made = {name: pool.submit(lower().compile) for name, lower in makers.items()}
        return {name: compiled.result() for name, compiled in made.items()}


def _random(program: Program) -> jax.stages.Lowered:
    def make(key):
        return jax.random.normal(key, program.shape, program.dtype)

    return jax.jit(make).lower(jax.random.key(0))


def _array_name(shape: Sequence[int], dtype: Any) -> str:
    return f"{tuple(shape)} {jnp.dtype(dtype).name}"


def _layers(
    group: list[Program], compiled: dict[str, Any], record: dict[str, Any]
) -> dict[str, Any]:
    first = group[0]
    make = compiled[_array_name(first.shape, first.dtype)]
    large = [make(jax.random.key(i)) for i in range(3)]
    runs = {p.norm: _run(compiled[p.name], large) for p in group}
    operation = _OPERATIONS[first.kind]
    if pytorch.device() == "cuda":
        case = Case("", first.shape, first.dtype, operation, first.activation)  # pyright: ignore
        added = large[2] if "add" in first.activation else None
        runs["torch"] = pytorch.layer(case, large[0], large[1], added)
    kernels = of_kernels(runs, rounds=9)
    times = {name: spread(values) for name, values in kernels.items()}
    read = {p.norm: programs.figures(p, compiled[p.name]) for p in group}
    speed, unit = 1e6 * record["copy, GB/s"], first.unit or 0
    floor = FLOOR[operation, "add+relu" if first.activation == "add+relu" else "none"]
    return {
        "shape": list(first.shape),
        "type": first.dtype,
        "operation": operation,
        "activation": first.activation,
        "MB": 1e-6 * unit,
        "milliseconds": times,
        "bytes / x": {n: r["bytes_over_x"] for n, r in read.items()},
        "kernels": {n: r["kernels"] for n, r in read.items()},
        "predicted / measured": {
            n: r["bytes"] / speed / times[n]["median"] for n, r in read.items()
        },
        "floor / measured": {
            n: floor * unit / speed / t["median"] for n, t in times.items()
        },
    }


def _run(program: Any, large: list[jax.Array]) -> Run:
    """A layer with random arrays for its large arguments, and ones for the others."""
    left = iter(large)
    arguments, _ = jax.tree.map(
        lambda info: (
            next(left)
            if info.shape == large[0].shape
            else jnp.ones(info.shape, info.dtype)
        ),
        program.args_info,
    )
    return Run(lambda: program(*arguments), program)


def _steps(group: list[Program]) -> dict[str, Any]:
    first, *others = group
    runs = {first.norm: _step(first)}
    with ThreadPoolExecutor() as pool:  # whose convolutions are tuned by now
        made = pool.map(_step, others)
        runs |= {p.norm: run for p, run in zip(others, made, strict=True)}
    read = {p.norm: programs.figures(p, runs[p.norm].program) for p in group}
    if pytorch.device() == "cuda" and environment.version("torchvision"):
        runs["torch"] = pytorch.step(first.dtype, first.shape[0])
    kernels = of_kernels(runs, rounds=5)
    rounds = back_to_back(runs, rounds=9, span=400)
    flax = np.array(rounds["flax"])
    return {
        "type": first.dtype,
        "images": first.shape[0],
        "milliseconds": {name: spread(values) for name, values in rounds.items()},
        "milliseconds of kernels": {n: spread(values) for n, values in kernels.items()},
        "flax / it": {name: spread(flax / values) for name, values in rounds.items()},
        "GB": {name: 1e-9 * r["bytes"] for name, r in read.items()},
        "temporary, GB": {name: 1e-9 * r["temp"] for name, r in read.items()},
    }


def _step(program: Program) -> Run:
    network = steps.network_of(steps.WAYS[program.norm], program.dtype)
    layout = make_layout(scale_config.Devices(), found=jax.devices()[:1])
    images = (*program.shape, *steps.IMAGE)
    return trained(network, layout, images, jnp.dtype(program.dtype))


def _layer_table(records: list[dict]) -> str:
    others = ("flax", "flax-two-pass", "haiku", "torch")
    header = ["shape", "type", "operation", "x, MB", "jaxbn, ms"]
    header += [f"{name} / jaxbn" for name in others]
    header += ["floor / jaxbn", "predicted / jaxbn", "predicted / flax"]
    rows = []
    for record in records:
        times = {n: t["median"] for n, t in record["milliseconds"].items()}
        operation = record["operation"]
        if record["activation"] != "none":
            operation += f", {record['activation']}"
        row = ["x".join(map(str, record["shape"])), record["type"], operation]
        row += [f"{record['MB']:.0f}", f"{times['jaxbn']:.3f}"]
        row += [
            f"{times[n] / times['jaxbn']:.2f}" if n in times else "" for n in others
        ]
        row += [f"{record['floor / measured']['jaxbn']:.2f}"]
        row += [f"{record['predicted / measured'][n]:.2f}" for n in ("jaxbn", "flax")]
        rows.append(row)
    return markdown(header, rows)


def _step_table(records: Iterable[dict]) -> str:
    header = ["type", "images", "normalization", "ms", "of kernels", "images/s"]
    header += ["flax / it", "GB moved"]
    rows = []
    for record in records:
        for name, time in record["milliseconds"].items():
            low, middle, high = record["flax / it"][name].values()
            ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})"
            speed = 1e3 * record["images"] / time["median"]
            kernels = record["milliseconds of kernels"][name]["median"]
            row = [record["type"], str(record["images"]), name]
            row += [f"{time['median']:.2f}", f"{kernels:.2f}", f"{speed:.0f}", ratio]
            moved = record["GB"].get(name)
            rows.append([*row, "" if moved is None else f"{moved:.1f}"])
    return markdown(header, rows)
