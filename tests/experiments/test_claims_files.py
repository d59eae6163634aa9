"""The claim files: short, complete, each in its own words."""

import importlib
import itertools
import json
import pkgutil
import re
import types
from pathlib import Path

import pytest

from experiments import claims
from experiments.claims import experiments, report
from experiments.claims.lab import figures, page, schema
from experiments.claims.lab.experiment import Quote
from experiments.claims.lab.page import number
from experiments.claims.verify import verify
from experiments.common.records import DamagedError

NAMES = [m.name for m in pkgutil.iter_modules(claims.__path__) if "claim_" in m.name]
ALL = experiments()


def source(name):
    return (Path(claims.__path__[0]) / f"{name}.py").read_text()


def test_there_are_nineteen():
    assert [one.number for one in ALL.values()] == [f"E{n:02}" for n in range(1, 20)]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_in_minutes(name):
    assert len(source(name).splitlines()) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_all(name):
    text = importlib.import_module(f"experiments.claims.{name}").__doc__ or ""
    for word in ("Source:", "Measured:", "Refuted if:", "Command:", "Runtime:"):
        assert word in text, word


def test_no_ten_lines_appear_twice():
    seen = {}
    for name in NAMES:
        lines = [line.strip() for line in source(name).splitlines() if line.strip()]
        for n in range(len(lines) - 9):
            block = "\n".join(lines[n : n + 10])
            assert seen.setdefault(block, name) == name, block


@pytest.mark.parametrize("one", ALL.values(), ids=list(ALL))
def test_claims_have_quotes_literature_and_a_rule_that_decides(one):
    assert one.quotes and one.literature
    assert any(rule.headline for rule in one.rules)
    assert all(rule.scale > 0 for rule in one.rules)
    words = {"", "supported", "contradicted", "qualified"}
    assert {rule.literature for rule in one.rules} <= words


def test_every_claim_is_decided_once():
    decided = [
        rule.claim for one in ALL.values() for rule in one.rules if rule.headline
    ]
    assert len(set(decided)) == len(decided)
    bare = {claim.rstrip("ab") for claim in decided}
    assert bare == {f"C{n:02}" for n in range(1, 25)}


def test_commands_in_docstrings_name_the_experiment():
    for name, one in ALL.items():
        assert f"experiments run {name} --preset quick" in one.document


def test_experiments_use_the_library_by_its_public_names():
    files = itertools.chain(
        Path(claims.__path__[0]).glob("*.py"),
        Path(claims.__path__[0]).joinpath("lab").glob("*.py"),
    )
    for path in files:
        assert "jaxbn.core" not in path.read_text(), path


def test_the_page_of_results_shows_the_committed_verdicts():
    top = Path(claims.__path__[0]).parents[1]
    if not (top / "results").is_dir():
        pytest.skip("not a checkout")
    page = (top / "results/README.md").read_text()
    content = json.loads((top / "results/quick/verdicts.json").read_text())
    for row in content["verdicts"]:
        shown = f"| {row['claim']} {row['text']} | {row['verdict']} |"
        assert shown in page
        assert f"{number(row)} | `run {row['experiment']}` |" in page


def test_the_committed_results_follow_from_their_runs():
    top = Path(claims.__path__[0]).parents[1]
    if not (top / "results").is_dir():
        pytest.skip("not a checkout")
    assert verify(top / "results/quick") == []


EVIL = """<script>alert(1)</script>"><img src=x onerror=1>' onload='1 {text} &amp;"""


def spoiled(value):
    """The content of a file with every text in it replaced; verdicts are checked."""
    if isinstance(value, dict):
        kept = {"verdict", "experiment"}
        return {k: v if k in kept else spoiled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_what_comes_from_files_is_never_a_tag_of_the_page():
    folder = Path(claims.__path__[0]).parents[1] / "results/quick"
    if not folder.is_dir():
        pytest.skip("not a checkout")
    texts = ("number", "title", "alt", "literature")
    loaded = {n: json.loads((folder / n).read_text()) for n in report._FILES}

    def draw(figure):
        axes = figure.subplots()
        axes.plot([1], label=EVIL)
        axes.set_title(EVIL)
        axes.legend()

    def made(loaded, text):
        svg, _, _ = figures.render(draw, salt="x", size=(16, 9))
        one = types.SimpleNamespace(name="convergence", **dict.fromkeys(texts, text))
        one.quotes, one.document = [Quote(text, text)], f"\n\n{text}"
        return page.page([one], {"forest": svg, one.name: svg}, loaded)

    clean, bad = made(loaded, "text"), made(spoiled(loaded), EVIL)
    tag = re.compile(r"""<(?:"[^"]*"|'[^']*'|[^'">])*>""")
    assert bad.count("&lt;script&gt;") > 100 and "{text}" in bad
    assert re.findall("<[^ >]*", bad) == re.findall("<[^ >]*", clean)
    for found in tag.findall(bad):
        bare = re.sub(r"""=("[^"]*"|'[^']*')""", "", found)
        assert not re.search(r"\son\w+", bare), found


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("environment.json", ("git",), "text"),
        ("environment.json", ("git", "commit"), 3),
        ("environment.json", ("packages",), ["jax"]),
        ("config.json", ("preset",), ["quick"]),
        ("timings.json", ("seconds",), 10**400),
        ("timings.json", ("seconds",), float("nan")),
        ("timings.json", ("schema",), {}),
    ],
)
def test_files_with_other_types_are_not_those_of_a_run(tmp_path, name, path, value):
    folder = Path(claims.__path__[0]).parents[1] / "results/quick"
    if not folder.is_dir():
        pytest.skip("not a checkout")
    content = inner = schema.load(folder / name)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"^'.*' must be whole, but: .*\.$"):
        schema.load(tmp_path / name)
