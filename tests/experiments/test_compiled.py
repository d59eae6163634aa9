"""Programs for accelerators that are not here: what is chosen, kept and printed."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
from extras import needs

from experiments import __main__ as command
from experiments.bench import main as bench
from experiments.bench.compilers import devices, largest, plot, programs, run, table

LAYER = programs.Program(
    "h100", "layer", "bfloat16", (64, 14, 14, 1024), "relu", 4, "jit", "flax"
)
STEP = programs.Program(
    "v5e", "step", "bfloat16", (64,), "network", 256, "jit", "jaxbn"
)
FIGURES = {
    "bytes": 216_000_000, "on_chip": 0, "kernels": 12, "moves": 0, "conditionals": 0,
    "loops": 0, "bytes_over_x": 8.25, "on_chip_over_x": 0.0, "bytes_by_compiler": None,
    "bytes_by_compiler_over_x": None, "all_reduce": 2, "all_gather": 0,
    "reduce_scatter": 0, "in_branches": 0, "bytes_sent": 1, "temp": 2_500_000_000,
    "seconds": 61.4,
}  # fmt: skip


@pytest.fixture
def compiled(monkeypatch):
    """Names of what is compiled, in order; nothing really is."""
    names = []

    def measured(program):
        names.append(program.name)
        return dict(FIGURES)

    monkeypatch.setattr(programs, "measured", measured)
    monkeypatch.setattr(devices, "check", lambda chips: None)
    monkeypatch.setattr(run.environment, "version", lambda name: "1.0")
    monkeypatch.setattr(bench, "_has", lambda variables: True)
    return names


def bench_compiled(out, *options):
    return command.main(["bench", "compiled", *options, "--out", str(out)])


@pytest.mark.parametrize("quick", [True, False])
def test_every_program_has_its_own_name(quick):
    names = [program.name for program in programs.plan(quick=quick)]
    assert len(set(names)) == len(names)
    assert "h100/layer/bfloat16/64x14x14x1024/relu/4/jit/flax" in names or not quick


def test_the_plan_has_what_is_promised():
    found = programs.plan(quick=False)
    layers = [p for p in found if p.kind == "layer"]
    for chip in ("h100", "v5e"):
        mine = [p for p in layers if p.chip == chip]
        assert {p.devices for p in mine} >= {1, 4, 8}
        assert {p.activation for p in mine} == {"none", "relu", "add+relu"}
        assert {p.dtype for p in mine} == {"float32", "bfloat16"}
        assert {p.parallel for p in mine} == {"jit", "shard_map"}
    steps = {(p.chip, p.devices) for p in found if p.kind == "step"}
    assert steps >= {("h100", 1), ("v5e", 1), ("v5e", 256), ("v5p", 4096)}


def test_a_second_run_compiles_what_is_missing(tmp_path, compiled, capsys):
    one, *others = (p.name for p in programs.plan(quick=True))
    assert bench_compiled(tmp_path, "--quick", "--only", one) == 0
    assert compiled == [one]
    assert bench_compiled(tmp_path, "--quick") == 0
    assert compiled == [one, *others]
    record = json.loads((tmp_path / "compiled.json").read_text())
    assert [r["name"] for r in record["programs"]] == compiled
    assert record["environment"]["packages"]["jax"]
    assert bench_compiled(tmp_path, "--quick", "--again", "--only", one) == 0
    assert compiled == [one, *others, one]
    assert f"1 of 1  {one}  61.4 s" in capsys.readouterr().err


def test_only_what_depends_on_a_change_is_compiled_again(
    tmp_path, compiled, monkeypatch
):
    bench_compiled(tmp_path, "--quick")
    compiled.clear()
    monkeypatch.setattr(run.environment, "sources", lambda *names: "changed")
    bench_compiled(tmp_path, "--quick")
    assert compiled and all(name.endswith("/jaxbn") for name in compiled)


def test_tables_and_picture_show_the_records(tmp_path, compiled, capsys):
    assert bench_compiled(tmp_path, "--quick") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Compiled, not run.")
    row = "| H100 | bfloat16 | 64x14x14x1024 | relu | 4 | jit | 8.25, 12, 2 |"
    assert row in printed and row in (tmp_path / "compiled.md").read_text()
    assert (tmp_path / "compiled.png").stat().st_size > 1000


def test_a_table_tells_conditionals_both_counts_and_failures():
    both = {"bytes_by_compiler": 1, "bytes_by_compiler_over_x": 15.0, "conditionals": 2}
    failed = dataclasses.replace(LAYER, norm="jaxbn")
    records = [
        {**run.described(LAYER), **FIGURES, **both},
        {**run.described(failed), "error": "out of memory"},
        {**run.described(STEP), **FIGURES},
        {**run.described(STEP), "error": "out of memory"},
    ]
    text = table.tables(records)
    assert "| 8.25 (15.00), 12, 2, 2 cond. | not compiled |" in text
    assert "| TPU v5e | 256 | 64 | jaxbn | 0.22 | 12 | 2 | 0 | 2.50 | 61 |" in text
    assert "not compiled: out of memory" in text


def test_a_picture_of_nothing_is_not_drawn(tmp_path):
    plot.draw([], tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("refused", [math.inf, 1000])
@pytest.mark.parametrize("slope", [1.0, 1.05, 0.05])
def test_the_largest_batch_is_found_in_a_few_guesses(refused, slope):
    def size(batch):  # with a kink, and above `refused` there is no figure
        if batch >= refused:
            return None
        return round(500 + 10 * min(batch, 300) + 10 * slope * max(batch - 300, 0))

    tried = {}
    while (batch := largest.guess(tried, 16_000, 16)) is not None:
        assert batch % 16 == 0 and batch not in tried
        tried[batch] = size(batch)
    fitting = [b for b, need in tried.items() if need is not None and need <= 16_000]
    best = max(fitting)
    above = size(best + 16)
    assert above is None or above > 16_000
    assert len(tried) <= 20


def test_the_largest_batch_of_nothing_that_fits_is_zero():
    tried = {}
    while (batch := largest.guess(tried, 10, 16)) is not None:
        tried[batch] = None
    assert tried == {32: None, 16: None}


def test_the_search_goes_on_where_it_ended(tmp_path, compiled, monkeypatch):
    sizes = []

    def measured(program):
        if len(sizes) == 2:
            sizes.append(None)
            raise KeyboardInterrupt
        batch = program.shape[0]
        sizes.append(batch)
        return {"needed": 30_000_000 * batch, "seconds": 1.0}

    monkeypatch.setattr(programs, "measured", measured)
    options = "--max-batch", "--only", "v5e/largest/*/flax"
    assert bench_compiled(tmp_path, *options) == 130
    assert bench_compiled(tmp_path, *options) == 0
    batches = [size for size in sizes if size]
    assert len(set(batches)) == len(batches)
    (record,) = json.loads((tmp_path / "compiled.json").read_text())["programs"]
    assert record["batch"] == 528 and record["finished"]
    text = (tmp_path / "compiled.md").read_text()
    assert "| TPU v5e | 16 | flax | 528 (in steps of 16) | 15.84 |" in text


@pytest.mark.parametrize(
    ("missing", "named"), [("libtpu", "libtpu"), ("jax-cuda12-pjrt", "jax-cuda12-pjrt")]
)
def test_a_missing_compiler_is_named(tmp_path, monkeypatch, capsys, missing, named):
    def version(name):
        if name == missing:
            raise devices.importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(bench, "_has", lambda variables: True)
    monkeypatch.setattr(devices.importlib.metadata, "version", version)
    assert bench_compiled(tmp_path) == 2
    error = capsys.readouterr().err
    assert f"got no `{named}`. Install them: pip install" in error
    assert error.count("\n") == 1


def test_a_compiler_of_another_jax_is_refused(tmp_path, monkeypatch, capsys):
    def version(name):
        return "2.0" if "cuda" in name else "1.0"

    monkeypatch.setattr(bench, "_has", lambda variables: True)
    monkeypatch.setattr(devices.importlib.metadata, "version", version)
    assert bench_compiled(tmp_path, "--only", "h100/*") == 2
    assert "must have the version of jaxlib, 1.0, got 2.0." in capsys.readouterr().err


def test_a_pattern_without_a_program_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_has", lambda variables: True)
    assert bench_compiled(tmp_path, "--only", "h200/*") == 2
    assert "`--only` must match the name of a program" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_form_compiles_for_both_accelerators(tmp_path):
    needs("jax_cuda12_plugin", extra="accelerators")
    needs("libtpu", extra="accelerators")
    words = "-m", "experiments", "bench", "compiled", "--quick", "--out", str(tmp_path)
    subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )
    records = json.loads((tmp_path / "compiled.json").read_text())["programs"]
    assert len(records) == len(programs.plan(quick=True))
    assert not [r["error"] for r in records if "error" in r]
    for record in records:
        assert record["bytes_over_x"] >= 5  # x and dy read, y and dx written, once more
        several = record["devices"] > 1
        assert (record["all_reduce"] > 0) == several
    kernels = {record["name"]: record["kernels"] for record in records}
    for name, number in kernels.items():
        of_flax = kernels[name.replace("/jaxbn", "/flax")]
        assert number <= of_flax + (10 if name.startswith("v5e") else 2), name
