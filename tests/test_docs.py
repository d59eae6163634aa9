"""The documentation: every public name has an entry, and every block of code runs.

Sphinx itself runs in CI, and with it the examples; nothing here needs it.
"""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from extras import needs
from sweeps import but_slow

import jaxbn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MODULES = ["jaxbn", *(f"jaxbn.{name}" for name in jaxbn._MODULES)]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
_PEER = re.compile(r"^(?:import|from) (equinox|haiku|keras|torch)\b", re.M)


def named(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """The Python of a page, each block at the line where it stands."""
    text = path.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        yield "\n" * text.count("\n", 0, found.start(1)) + found[1]


CODE = {named(path): list(blocks(path)) for path in PAGES}
CODE = {page: code for page, code in CODE.items() if code}


@pytest.mark.parametrize("page", but_slow(CODE, CODE.keys() - {"README.md"}))
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for package in sorted(set(_PEER.findall("\n".join(CODE[page])))):
        needs(package)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in CODE[page]:
        exec(compile(block, page, "exec"), names)


def entries():
    """The names that have an entry on a page of the API."""
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("api/*.md")))
    return set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.M))


def public():
    names = {
        f"{module}.{name}"
        for module in MODULES
        for name in importlib.import_module(module).__all__
    }
    return names | {"jaxbn.equinox.BatchNorm"}


def test_every_public_name_has_an_entry():
    bases = {"jaxbn.linen_base.Layer", "jaxbn.nnx_base.Layer"}
    assert entries() == public() | bases


def test_every_page_is_in_a_table_of_contents():
    listed = {"docs/index.md"}
    for path in DOCS.rglob("*.md"):
        for toc in re.findall(
            r"^```\{toctree\}\n(.*?)^```", path.read_text(), re.M | re.S
        ):
            names = [n for n in toc.split("\n") if n and not n.startswith(":")]
            listed |= {named(path.parent / f"{name}.md") for name in names}
    assert listed == {named(path) for path in DOCS.rglob("*.md")}


def test_a_guide_ends_with_a_program():
    guides = [path for path in DOCS.glob("guides/*.md") if path.stem != "index"]
    ends = {
        path.stem: path.read_text().rstrip().rpartition("\n\n```") for path in guides
    }
    assert len(ends) == 13
    assert {
        name for name, end in ends.items() if not end[2].startswith("python")
    } == set()


_LINK = re.compile(r"\]\(([^)\s]+)\)")


def missing_targets(path):
    text = re.sub(
        r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    targets = [t.partition("#")[0] for t in _LINK.findall(text) if "://" not in t]
    return [t for t in targets if t and not (path.parent / t).exists()]


@pytest.mark.skipif(
    not (ROOT / "results").exists(), reason="not in the source distribution"
)
def test_links_lead_to_files():
    found = {named(path): missing_targets(path) for path in PAGES}
    assert {page: targets for page, targets in found.items() if targets} == {}


# `jaxbn[x,y]`, `-e ".[x]"`, and what messages are filled in with.
_EXTRAS = re.compile(r"""(?:jaxbn\[|-e ["']?\.\[|\bextra=")([\w,-]+)["\]]""")


def test_messages_name_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    files = [*(ROOT / "jaxbn").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    asked = {}
    for path in [*files, *PAGES]:
        for text in _EXTRAS.findall(path.read_text(encoding="utf-8")):
            asked.setdefault(path.name, set()).update(text.split(","))
    assert {"accelerators", "hf", "safetensors"} <= set().union(*asked.values())
    assert {name: wrong for name, v in asked.items() if (wrong := v - extras)} == {}
