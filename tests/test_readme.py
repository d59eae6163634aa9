"""README is short, and its numbers stand in tables that follow from results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
BENCH = ROOT / "results" / "bench"
in_checkout = pytest.mark.skipif(
    not BENCH.exists(), reason="not in the source distribution"
)
_NUMBER = re.compile(r"(?<![\w.,/#-])\d+(?:\.\d+)?(?:e[+-]\d\d)?(?![\w/]|\.\d)")
# Of other things than measurements: Python, JAX, bits, examples in a sentence.
_NAMES = {"3.11", "3.13", "1"}


def prose(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


def rows(text):
    """The cells of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def test_readme_is_read_in_minutes():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1200
    code = re.findall(r"^```.*?^```", README, flags=re.M | re.S)
    assert max(len(line) for block in code for line in block.splitlines()) <= 100


def test_each_number_of_the_readme_is_in_a_table_of_the_benchmarks():
    numbers = set(_NUMBER.findall(prose(README)))
    tables = {n for row in rows(BENCHMARKS) for n in _NUMBER.findall(" ".join(row))}
    conditions = set(_NUMBER.findall(prose(BENCHMARKS)))
    measured = {n for n in numbers if "." in n or "e" in n}
    assert {"5e-07", "24.6", "1.65"} <= numbers
    assert measured - tables - _NAMES == {"0.10.2"} & measured
    assert numbers - conditions - _NAMES == {"0.10.2"} & numbers


def figure(error):
    return "NaN" if error is None else f"{error:.0e}"


@in_checkout
def test_the_errors_are_those_of_the_results():
    record = json.loads((BENCH / "accuracy.json").read_text())
    for part in ("errors", "hard"):
        for name, errors in record[part].items():
            values = errors.values() if part == "hard" else errors
            assert [name, *map(figure, values)] in rows(BENCHMARKS)


@in_checkout
def test_the_memory_is_that_of_the_results():
    for row in json.loads((BENCH / "memory.json").read_text())["steps"]:
        sizes = [f"{row[name]:.0f}" for name in ("residuals", "temporary")]
        assert [row["type"], row["norm"], *sizes] in rows(BENCHMARKS)


@in_checkout
def test_the_programs_are_those_of_the_results():
    compiled = rows((BENCH / "compiled.md").read_text())
    cells = {tuple(row[:3]) + tuple(row[6:9]) for row in compiled if len(row) > 8}
    layers = [
        r for r in rows(BENCHMARKS) if r[0] in ("H100", "TPU v5e") and len(r) == 7
    ]
    wrong = [r for r in layers if not r[2].startswith("the same") and r[3] == "1"]
    wrong = [r for r in wrong if (*r[:3], *r[4:7]) not in cells]
    assert len(layers) >= 10 and wrong == []
    step = {row[3]: row for row in compiled if row[:3] == ["H100", "1", "64"]}
    order = ("none", "flax", "flax-two-pass", "jaxbn")
    moved = [f"{float(step[name][4]):.1f}" for name in order]
    temporary = [step[name][8] for name in order]
    assert ["GB moved", *moved] in rows(BENCHMARKS)
    assert ["temporary, GB", *temporary] in rows(BENCHMARKS)
    step = {row[3]: row for row in compiled if row[:3] == ["TPU v5e", "1", "64"]}
    order = ("flax", "flax-two-pass", "jaxbn", "jaxbn-output")
    for place, row in ((5, "kernels"), (8, "temporary, GB")):
        assert [row, *(step[name][place] for name in order)] in rows(BENCHMARKS)
    moved = [re.findall(r"[\d.]+", step[name][4]) for name in order]
    cells = [f"{float(main):.1f} ({float(every):.1f})" for main, every in moved]
    row = "GB moved in main memory (in all memories)"
    assert [row, *cells] in rows(BENCHMARKS)


def on_a_gpu():
    """The results of one GPU, and its layers by what distinguishes them."""
    record = json.loads((BENCH / "gpu.json").read_text())
    return record, {
        (one["type"], one["operation"], one["activation"], tuple(one["shape"])): one
        for one in record["layers"]
    }


BOTH = "forward+backward"


@in_checkout
def test_the_layers_on_a_gpu_are_those_of_the_results():
    (_, found), table = on_a_gpu(), rows(BENCHMARKS)

    def median(key, name):
        return found[key]["milliseconds"][name]["median"]

    def ratio(*key, name="flax"):
        if key not in found:
            return "-"  # the time on the machine had ended
        return f"{median(key, name) / median(key, 'jaxbn'):.2f}"

    for *key, shape in found:
        if key != ["bfloat16", BOTH, "none"] or shape[0] == 32:
            continue
        alone, others = [], []
        for dtype in ("bfloat16", "float32"):
            this = dtype, BOTH, "none", shape
            one = found[this]
            alone += [f"{1e3 * median(this, 'jaxbn'):.0f}", ratio(*this)]
            alone += [ratio(*this, name="torch")]
            alone += [f"{100 * one['floor / measured']['jaxbn']:.0f} %"]
            alone += [f"{one['predicted / measured']['jaxbn']:.2f}"]
            others += [ratio(dtype, BOTH, a, shape) for a in ("relu", "add+relu")]
            others += [ratio(dtype, BOTH, "none", (32, *shape[1:]))]
        others.insert(3, ratio("bfloat16", "forward", "none", shape))
        name = "x".join(map(str, shape))
        assert [name, *alone] in table
        assert len(shape) == 2 or [name, *others] in table
    trained = [key for key in found if key[1] == BOTH]
    assert len(trained) == 95
    assert sum(median(key, "flax") > median(key, "jaxbn") for key in trained) == 91


@in_checkout
def test_the_steps_on_a_gpu_are_those_of_the_results():
    (step,) = on_a_gpu()[0]["steps"]
    for name, time in step["milliseconds"].items():
        low, middle, high = step["flax / it"][name].values()
        row = [f"{time['median']:.2f}"]
        row += [f"{step['milliseconds of kernels'][name]['median']:.2f}"]
        row += [f"{128e3 / time['median']:.0f}"]
        row += [f"{middle:.3f} ({low:.3f} to {high:.3f})"]
        moved = [step[key].get(name) for key in ("GB", "temporary, GB")]
        row += ["-" if n is None else f"{n:.{d}f}" for d, n in enumerate(moved, 1)]
        assert any(r[1:] == row for r in rows(BENCHMARKS))


@in_checkout
def test_the_kernels_on_a_gpu_are_those_of_the_results():
    (record, layers), table = on_a_gpu(), rows(BENCHMARKS)
    shape = 128, 56, 56, 256
    one = 1e3 * layers["bfloat16", BOTH, "none", shape]["MB"] / record["copy, GB/s"]
    assert ["a copy", *(f"{n * one:.0f}" for n in (1, 2, 2, 3)), "-"] in table
    seen = 0
    for one in record["kernels of a layer"]:
        key = one["type"], one["operation"], tuple(one["shape"])
        if key != ("bfloat16", BOTH, shape) or "," in one["normalization"]:
            continue
        times = [time for _, time in one["microseconds"]]
        sums, y, *backward, dx = [time for time in times if time > 50]
        row = [sums, y, sum(backward), dx]
        row = [f"{time:.0f}" for time in (*row, sum(times) - sum(row))]
        assert [one["normalization"], *row] in table
        seen += 1
    assert seen == 2


@in_checkout
def test_the_registers_on_a_gpu_are_those_of_the_results():
    record, _ = on_a_gpu()
    found, text = record["registers of backward sums"], " ".join(BENCHMARKS.split())
    times = ("before", "now")

    def number(where):
        return [str(sum(where(one[time]) for one in found)) for time in times]

    many = number(lambda kernel: kernel["registers"] > 32)
    stored = number(lambda kernel: kernel["bytes in memory"] > 0)
    (one,) = [
        [str(one[time]["registers"]) for time in times]
        for one in found
        if one["shape"] == [128, 112, 112, 64]
        and (one["type"], one["activation"]) == ("bfloat16", "add+relu")
    ]
    assert [row[1:] for row in rows(BENCHMARKS) if "registers" in row[0]] == [many, one]
    assert ["with some of them in memory", *stored] in rows(BENCHMARKS)
    assert f"this changes {len(found)}," in text
    (trial,) = [
        one["milliseconds"]
        for one in record["layers by thread blocks"]
        if one["shape"] == [128, 56, 56, 256]
        and (one["type"], one["activation"]) == ("float32", "add+relu")
    ]
    took = [f"{1e3 * trial[key]:.0f} µs" for key in ("(512, 2048)", "(512, 512)")]
    assert f"took {took[0]}, and {took[1]} in a trial" in text


@in_checkout
def test_the_times_are_those_of_the_results():
    layers = [
        row[:9]
        for row in rows((BENCH / "layer.md").read_text())
        if row[1] == "forward+backward" and row[2] in ("none", "relu") and len(row) > 9
    ]
    assert len(layers) == 4
    for dtype, *_, flax, torch, xla, least, share in layers:
        cells = [flax, torch, f"{xla} ({least})", share]
        assert any(r[0] == dtype and r[2:] == cells for r in rows(BENCHMARKS))
    for record in json.loads((BENCH / "step.json").read_text())["steps"]:
        spreads = record["flax / it"]
        keys = ("median", "lower quartile", "upper quartile")
        found = [[f"{spreads[n][k]:.2f}" for k in keys] for n in list(spreads)[:3]]
        cells = [f"{middle} ({low} to {high})" for middle, low, high in found]
        network = record["network"] + (", batch 8" if record["images"][0] == 8 else "")
        assert [network, record["type"], *cells] in rows(BENCHMARKS)
    ratios = [row[-1] for row in rows((BENCH / "scale.md").read_text())[2:6]]
    assert ["float32", *ratios[:2]] in rows(BENCHMARKS)
    again = f"{ratios[3]} (measured again: 1.06)"
    assert ["bfloat16", ratios[2], again] in rows(BENCHMARKS)
