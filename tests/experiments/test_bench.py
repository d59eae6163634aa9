"""The benchmarks run, and what they claim of jaxbn holds."""

import contextlib
import functools
import json
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from extras import needs

import jaxbn.deploy
from experiments import __main__ as command
from experiments.bench import accuracy as bench_accuracy
from experiments.bench import cases as bench_cases
from experiments.bench import fold as bench_fold
from experiments.bench import gpu as bench_gpu
from experiments.bench import layer as bench_layer
from experiments.bench import main as bench
from experiments.bench import memory as bench_memory
from experiments.bench import peers as bench_peers
from experiments.bench import step as bench_step
from experiments.bench import turns as bench_turns
from experiments.nets import resnet


@pytest.mark.slow
def test_accuracy_meets_its_bounds_and_writes_what_it_prints(
    tmp_path, capsys, monkeypatch
):
    # Other libraries compile anew for each; `test_batch_norm` has those between.
    monkeypatch.setattr(bench_accuracy, "RATIOS", (0.0, 10.0, 1e5))
    assert command.main(["bench", "accuracy", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "accuracy.json").read_text())
    table = capsys.readouterr().out
    for name in ("jaxbn", "jaxbn, 8 replicas"):
        errors = record["errors"][name]
        assert errors[0] <= 5e-6
        assert max(errors) <= 1e-3
        assert f"| {name} | {errors[0]:.0e} |" in table
    assert record["environment"]["packages"]["jax"]


@pytest.mark.slow
def test_residuals_of_resnet_are_near_those_without_normalization():
    def kept(name):
        way = bench_memory.WAYS[name]
        loss, arguments = bench_memory.problem(way, "bfloat16", 8)
        return bench_memory.residual_bytes(loss, arguments)

    none = kept("none")
    assert kept("jaxbn, activation and residual inside") < 1.1 * none
    assert kept('jaxbn, save="recompute"') < 0.8 * none
    leaky = kept("none, leaky ReLU")
    assert kept('jaxbn, leaky ReLU, save="output"') < 0.9 * leaky


@pytest.mark.slow
def test_a_folded_net_gives_the_same_in_the_benchmark(monkeypatch):
    monkeypatch.setattr(resnet, "STAGES", (1, 1))
    model = bench_fold.resnet()
    x = jnp.ones((1, 32, 32, 3)) * jnp.linspace(-1, 1, 32)[:, None]
    folded, report = jaxbn.deploy.fold_nnx(model, x)
    assert not report.kept and len(report.folded) == 9
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_batch_of_nothing_is_refused(tmp_path, capsys):
    assert command.main(["bench", "memory", "--batch", "0"]) == 2
    assert "`--batch` must be at least 1, got 0." in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_where_nothing_can_be_written_nothing_is_measured(
    tmp_path, capsys, monkeypatch, folder
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(bench_accuracy, "_libraries", None)
    out = tmp_path / folder
    assert command.main(["bench", "accuracy", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: `--out` must be a directory that can be written")
    assert error.count("\n") == 1


def test_the_table_is_printed_whatever_becomes_of_the_file(
    tmp_path, capsys, monkeypatch
):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench_accuracy, "measure", lambda config: ({}, "the table"))
    monkeypatch.setattr(bench.files, "write_json", full)
    assert command.main(["bench", "accuracy", "--out", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert out == "the table\n" and "No space left on device" in error


def test_a_benchmark_of_the_gpu_wants_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_has", lambda variables: True)
    assert command.main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: `gpu` must find a GPU, got only a cpu. Run it on")


def test_a_step_or_a_layer_can_be_chosen_of_the_benchmark_of_the_gpu():
    groups = bench_gpu.plan(quick=False, batch=128)
    names = [program.name for group in groups for program in group]
    assert len(set(names)) == len(names)
    assert {group[0].kind for group in groups} == {"layer", "forward", "step"}
    # The first of a group names it, and jaxbn and flax are in all of them.
    norms = [{program.norm for program in group} for group in groups]
    assert all({"jaxbn", "flax"} <= mine for mine in norms)


@pytest.mark.slow
def test_the_benchmark_of_the_gpu_writes_every_case(tmp_path, monkeypatch):
    """On a CPU, whose kernels no profiler sees."""
    needs("haiku")

    def program(kind, dtype, activation, norm):
        shape = (2,) if kind == "step" else (4, 8, 8, 16)
        return bench_gpu.program(kind, dtype, shape, activation, norm)

    everyone = ("jaxbn", "flax", "flax-two-pass", "haiku")
    groups = [
        [program("layer", "bfloat16", "none", norm) for norm in everyone],
        [program("forward", "float32", "add+relu", norm) for norm in everyone[:2]],
        [program("step", "bfloat16", "network", norm) for norm in ("flax", "jaxbn")],
    ]

    def kernels(runs, *, rounds):
        return bench_turns.back_to_back(runs, rounds=rounds, span=0.1)

    monkeypatch.setattr(resnet, "STAGES", (1,))
    monkeypatch.setattr(bench_gpu.steps, "IMAGE", (32, 32, 3))
    monkeypatch.setattr(bench_gpu, "plan", lambda *, quick, batch: groups)
    monkeypatch.setattr(bench_gpu, "require_gpu", lambda: None)
    monkeypatch.setattr(bench_gpu, "of_kernels", kernels)
    monkeypatch.setattr(bench_gpu, "COPIED", 2**16)
    monkeypatch.setattr(bench, "_has", lambda variables: True)
    assert command.main(["bench", "gpu", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    layer, forward = record["layers"]
    assert set(layer["milliseconds"]) == set(everyone)
    assert layer["MB"] == 1e-6 * 2 * 4 * 8 * 8 * 16
    assert forward["operation"] == "forward"
    (step,) = record["steps"]
    assert step["flax / it"]["flax"]["median"] == 1 and step["GB"]["jaxbn"] > 0


@pytest.mark.parametrize("seen", [6, 5])
def test_the_time_of_kernels_is_of_every_run(monkeypatch, seen):
    """Three rounds of two functions, the first of one kernel and the other of two."""
    started = []

    @contextlib.contextmanager
    def trace(folder, *, profiler_options):
        started.clear()
        yield
        (Path(folder) / "x.xplane.pb").touch()

    def profile(path):
        kernel = functools.partial(types.SimpleNamespace, name="k")
        events = []
        for turn, name in enumerate(started[:seen]):
            begin, one = 1e9 * turn, 1e6 * (turn + 1)
            events.append(kernel(start_ns=begin, duration_ns=one))
            if name == "two":  # a microsecond later
                events.append(kernel(start_ns=begin + one + 1e3, duration_ns=one))
        stream = types.SimpleNamespace(name="Stream #7(Compute)", events=events[::-1])
        other = types.SimpleNamespace(name="XLA Modules", events=events)
        gpu = types.SimpleNamespace(name="/device:GPU:0", lines=[stream, other])
        host = types.SimpleNamespace(name="/host:CPU", lines=[stream])
        return types.SimpleNamespace(planes=[host, gpu])

    fake = types.SimpleNamespace(from_file=profile)
    monkeypatch.setattr(bench_turns, "_APART", 0.001)
    monkeypatch.setattr(bench_turns.jax.profiler, "trace", trace)
    monkeypatch.setattr(bench_turns.jax.profiler, "ProfileData", fake, raising=False)
    runs = {
        name: bench_turns.Run(functools.partial(started.append, name))
        for name in ("one", "two")
    }
    if seen == 5:
        with pytest.raises(RuntimeError, match="must see 6 runs, got 5"):
            bench_turns.of_kernels(runs, rounds=3)
        return
    times = bench_turns.of_kernels(runs, rounds=3)
    turns = {n: [i for i, s in enumerate(started) if s == n] for n in runs}
    assert times["one"] == pytest.approx([i + 1 for i in turns["one"]])
    assert times["two"] == pytest.approx([2 * (i + 1) for i in turns["two"]])


SMALL = [
    bench_cases.Case("ResNet-50", (4, 3, 3, 8), "float32", "forward+backward", "none"),
    bench_cases.Case("dense", (16, 8), "bfloat16", "inference", "add+relu"),
    bench_cases.Case("all libraries", (16, 8), "float32", everyone=True),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.group)
def test_every_library_computes_the_same_layer(case):
    results = {name: run() for name, run in bench_peers.runs(case).items()}
    results.pop("copy")
    leaf = {name: bench_accuracy.first(result) for name, result in results.items()}
    assert {"jaxbn", "xla", "flax"} <= leaf.keys()
    for name, value in leaf.items():
        # Torch and haiku save their running statistics by other rules, y is the same.
        np.testing.assert_allclose(value, leaf["jaxbn"], atol=2e-2, err_msg=name)


@pytest.mark.slow
def test_layer_prints_means_and_writes_records_and_a_plot(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(bench_layer, "plan", lambda *, quick: SMALL)
    monkeypatch.setattr(bench_layer, "SECONDS", {True: 0.0, False: 0.0})
    monkeypatch.setattr(bench, "_has", lambda variables: True)
    assert command.main(["bench", "layer", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "layer.json").read_text())
    first = record["cases"][0]
    times = first["milliseconds"]
    ratio = times["flax"]["median"] / times["jaxbn"]["median"]
    assert first["ratios"]["flax"] == ratio
    assert f"| {ratio:.2f} |" in printed
    copy = times["copy"]["median"]
    assert first["floor"] == pytest.approx(8 / 2 * copy / times["jaxbn"]["median"])
    moved = first["bytes / x"]["flax"]
    assert moved >= 8 and "torch" not in first["bytes / x"]
    predicted = moved / 2 * copy / times["flax"]["median"]
    assert first["predicted"]["flax"] == pytest.approx(predicted)
    assert (tmp_path / "layer.png").stat().st_size > 1000
    assert "all libraries" not in (tmp_path / "layer.md").read_text().splitlines()[0]


@pytest.mark.slow
def test_step_trains_the_network_with_each_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_step, "SIZES", {8: 8})
    norms = {name: bench_step.NORMS[name] for name in ("jaxbn, fused", "flax")}
    monkeypatch.setattr(bench_step, "NORMS", norms)
    in_turns = bench_step.in_turns
    monkeypatch.setattr(
        bench_step, "in_turns", lambda runs, seconds: in_turns(runs, seconds=0.1)
    )
    monkeypatch.setattr(bench, "_has", lambda variables: True)
    assert command.main(["bench", "step", "--quick", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for record in json.loads((tmp_path / "step.json").read_text())["steps"]:
        assert record["network"] == "ResNet-8" and record["images"] == [8, 8, 8, 3]
        ratio = record["flax / it"]["jaxbn, fused"]["median"]
        assert record["flax / it"]["flax"]["median"] == 1
        assert f"({ratio:.2f}, " in table


def test_the_plan_has_every_kind_of_case():
    cases = bench_cases.plan(quick=False)
    assert len({(c.shape, c.dtype, c.operation, c.activation) for c in cases}) >= 200
    for activation in ("none", "relu", "add+relu"):
        assert any(c.activation == activation for c in cases)
    assert any(c.everyone for c in cases)
    assert len(bench_cases.plan(quick=True)) <= 20


def test_turns_have_a_random_order(monkeypatch):
    monkeypatch.setattr(bench_turns, "LEAST", 40)
    monkeypatch.setattr(bench_turns, "MOST", 40)
    monkeypatch.setattr(bench_turns, "_PAUSE", 0.0)
    order = []
    functions = {name: functools.partial(order.append, name) for name in "ab"}
    bench_turns.in_turns(functions, seconds=1.0)
    warm, timed = order[:4], "".join(order[4:])
    assert warm == list("aabb")
    rounds = [timed[i : i + 2] for i in range(0, len(timed), 2)]
    assert len(rounds) == 40 and set(rounds) == {"ab", "ba"}
    assert any(timed[i : i + 3] == "aba" for i in range(78))


def test_ratios_have_quartiles():
    ratio = bench_turns.spread(np.array([2.0, 4.0, 6.0]) / [1.0, 1.0, 2.0])
    assert ratio == {"lower quartile": 2.5, "median": 3.0, "upper quartile": 3.5}
