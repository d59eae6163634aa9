"""The claim files: short, complete, each in its own words."""

import importlib
import itertools
import json
import pkgutil
import re
from pathlib import Path

import pytest

from experiments import claims
from experiments.claims import experiments, report
from experiments.claims.lab import page, schema
from experiments.claims.lab.rules import claims as claims_toml
from experiments.claims.verify import verify

NAMES = [m.name for m in pkgutil.iter_modules(claims.__path__) if "claim_" in m.name]
ALL = experiments()
ASKED = ("weight-decay",)  # by students; no note says a word about it


def source(name):
    return (Path(claims.__path__[0]) / f"{name}.py").read_text()


def test_they_are_numbered():
    numbers = [f"E{n + 1:02}" for n in range(len(ALL))]
    assert [one.number for one in ALL.values()] == numbers


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
        lines = [line for line in lines if not line.startswith(("import ", "from "))]
        for n in range(len(lines) - 9):
            block = "\n".join(lines[n : n + 10])
            assert seen.setdefault(block, name) == name, block


@pytest.mark.parametrize("one", ALL.values(), ids=list(ALL))
def test_claims_have_quotes_literature_and_a_rule_that_decides(one):
    assert (one.quotes or one.name in ASKED) and one.literature
    assert any(rule.headline for rule in one.rules)
    for rule in one.rules:
        assert rule.entry.scale or rule.entry.least > 0
        assert bool(rule.entry.published) == rule.headline
    assert {quote.source for quote in one.quotes} <= set(claims_toml().sources)


def test_every_rule_is_used_once():
    used = [rule.name for one in ALL.values() for rule in one.rules]
    assert sorted(used) == sorted(claims_toml().rules)


def test_every_claim_is_decided_once():
    decided = [
        rule.claim for one in ALL.values() for rule in one.rules if rule.headline
    ]
    assert len(set(decided)) == len(decided)
    bare = sorted({claim.rstrip("ab") for claim in decided})
    assert bare == [f"C{n + 1:02}" for n in range(len(bare))]


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


TOP = Path(claims.__path__[0]).parents[1]
# Those of the rules that are frozen; others are of older designs, to be replaced.
COMMITTED = [
    path.parent
    for path in sorted(TOP.glob("results/*/config.json"))
    if "rules" in json.loads(path.read_text())
]


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMMITTED, ids=[one.name for one in COMMITTED])
def test_the_committed_results_follow_from_their_runs(folder):
    assert verify(folder) == []
    loaded = {name: schema.load(folder / name) for name in report.FILES}
    assert (folder / "README.md").read_text(encoding="utf-8") == page.summary(loaded)


def test_the_page_of_results_shows_the_committed_verdicts():
    """Between `<!-- claims of DIR beside OTHER -->` and the next comment."""
    if not (TOP / "results").is_dir():
        pytest.skip("not a checkout")
    text = (TOP / "results/README.md").read_text(encoding="utf-8")
    mark = r"<!-- claims of (\S+) beside (\S+) -->\n(.*?)\n<!--"
    ((*folders, lines),) = re.findall(mark, text, re.DOTALL)
    first, other = (schema.load(TOP / one / "verdicts.json") for one in folders)
    assert lines == page.table(first["verdicts"], other)
    assert page.agreement(first["verdicts"], other["verdicts"]) in text
    assert [TOP / one for one in folders] == COMMITTED
