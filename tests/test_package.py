"""The house: public names, who may import whom, size of files, runnable examples."""

import ast
import doctest
import functools
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from extras import needs

import jaxbn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxbn"
SOURCES = sorted(PACKAGE.rglob("*.py"))
experiments = sorted((ROOT / "experiments").rglob("*.py"))
FUNCTIONS = {
    "batch_norm", "batch_norm_inference", "implementations", "init_state",
    "keep_freed_memory", "merge", "moments", "normalize", "recompute_policy", "update",
}  # fmt: skip
TYPES = {"BatchNormState", "Moments"}
COLLECTIVES = {
    "psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute",
    "psum_scatter", "axis_index",
}  # fmt: skip


def path_of(file):
    return str(file.relative_to(ROOT))


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file):
    """The modules and names that a file imports, as dotted names."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path_of(file)}: write absolute imports"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def attributes(file):
    """Names written after a dot, and bare names, of a file."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


def part(file):
    """The folder or top-level module of the package that a file belongs to."""
    first, *rest = file.relative_to(PACKAGE).parts
    return first if rest else Path(first).stem


def is_public(name):
    """`jaxbn`, `jaxbn.<public name>` or a module outside of the core and backends."""
    first, *rest = name.split(".")[1:] or [""]
    return first not in ("core", "backends") and not any(
        n.startswith("_") for n in (first, *rest)
    )


_BACKENDS = ("jaxbn.backends.contract.", "jaxbn.backends.dispatch.")
ALLOWED = {
    "core": ("jaxbn.core.", "jaxbn.backends."),
    "backends": ("jaxbn.backends.", "jaxbn.core.types."),
    "variants": ("jaxbn.core.", *_BACKENDS, "jaxbn.variants.", "jaxbn."),
    "deploy": ("jaxbn.core.", *_BACKENDS, "jaxbn.deploy.", "jaxbn."),
    "interop": ("jaxbn.core.", "jaxbn.interop.", "jaxbn."),
    "optim": ("jaxbn.core.", "jaxbn."),
}


def forbidden_imports(file):
    own = [name for name in imports(file) if f"{name}.".startswith("jaxbn.")]
    folder = part(file)
    if folder == "__init__":
        return []
    if folder in ("core", "backends"):
        return [n for n in own if not f"{n}.".startswith(ALLOWED[folder])]
    if folder in ALLOWED:
        core = tuple(f"{p}" for p in ALLOWED[folder] if p != "jaxbn.")
        return [n for n in own if not (is_public(n) or f"{n}.".startswith(core))]
    return [n for n in own if not is_public(n)]


def violations(files, find):
    """What `find` finds in each file, where it finds anything."""
    found = {path_of(file): find(file) for file in files}
    return {path: what for path, what in found.items() if what}


def test_imports_follow_the_arrows():
    assert violations(SOURCES, forbidden_imports) == {}


def private_imports(file):
    own = [name for name in imports(file) if f"{name}.".startswith("jaxbn.")]
    return [name for name in own if not is_public(name)]


def test_experiments_import_public_names_only():
    assert violations(experiments, private_imports) == {}


# Which rooms of `experiments` enter which others; there is no way back.
ROOMS = {
    "": {"common"},
    "bench": {"bench.compilers", "common", "nets", "scale"},
    "bench.compilers": {"collectives", "common", "nets", "scale"},
    "claims": {"claims.lab", "common"},
    "claims.lab": {"common", "nets"},
    "collectives": {"common", "scale"},
    "digits": {"claims.lab", "common", "nets"},
    "examples": set(),
    "scale": {"common", "nets"},
    "common": set(),
    "nets": set(),
}


def room_of(file):
    return ".".join(file.relative_to(ROOT / "experiments").parts[:-1])


def entered(name):
    """The room of the module or the name that is imported; None outside of them."""
    parts = name.split(".")[1:] if name.startswith("experiments.") else []
    rooms = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((room for room in rooms if room in ROOMS), None)


def test_the_rooms_of_the_experiments_are_entered_one_way():
    found = {room: set() for room in ROOMS}
    for file in experiments:
        here = room_of(file)
        found[here] |= set(map(entered, imports(file))) - {here, None}
    assert found == ROOMS
    assert sum(map(len, ROOMS.values())) <= 20


def private_of_jax(file):
    names = [name for name in imports(file) if "jax._src" in name]
    return names + sorted(attributes(file) & {"_src"})


def test_nothing_private_of_jax_is_used():
    found = violations(SOURCES + experiments, private_of_jax)
    # The rules of `checkify` are in a table that has no public name.
    assert found == {"jaxbn/core/interpreters.py": ["jax._src.checkify"]}


# `checks.axis_size` is not a collective: psum of the constant 1 is the axis size.
OUTSIDE = {"jaxbn/core/sync.py"}
EXCEPTIONS = {"jaxbn/core/checks.py": {"psum"}}


def test_collectives_are_in_one_file():
    def find(file):
        used = attributes(file) & COLLECTIVES
        return used - EXCEPTIONS.get(path_of(file), set())

    inside = [file for file in SOURCES if path_of(file) not in OUTSIDE]
    assert violations(inside, find) == {}


def test_the_exception_for_psum_is_the_size_of_an_axis():
    text = (PACKAGE / "core" / "checks.py").read_text()
    assert re.findall(r"psum\([^)]*\)", text) == ["psum(1, axis_name)"]


def test_flax_is_imported_by_the_adapters_only():
    def find(file):
        return [name for name in imports(file) if name.split(".")[0] == "flax"]

    adapters = ("linen", "nnx")
    others = [f for f in SOURCES if f.stem.split("_")[0] not in adapters]
    assert violations(others, find) == {}


# Run in a process of its own, in this order.
IMPORTING = """
import json, sys
import jaxbn
facts = {"loaded": sorted(sys.modules)}
names = json.loads(sys.argv[1])
facts["missing"] = [n for n in names if not hasattr(jaxbn.variants, n)]
import jax
jax.config.update("jax_num_cpu_devices", 3)
facts["devices"] = jax.device_count()
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def importing():
    """What a process sees that imports the package, and then uses it."""
    names = jaxbn.variants.__all__
    assert names
    command = [sys.executable, "-c", IMPORTING, json.dumps(sorted(names))]
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, check=True, cwd=ROOT, env=env, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def test_importing_the_package_loads_nothing_it_does_not_need(importing):
    assert "jaxbn" in importing["loaded"]
    unneeded = {"flax", "optax", "chex", "torch", "keras"}
    assert unneeded & set(importing["loaded"]) == set()


def test_variants_need_no_import_of_their_own(importing):
    assert importing["missing"] == []


def test_importing_the_package_starts_no_backend(importing):
    assert importing["devices"] == 3


def test_the_public_functions_are_those_of_the_design():
    public = {
        name
        for name, value in vars(jaxbn).items()
        if callable(value) and not name.startswith("_")
    }
    assert public == FUNCTIONS | TYPES


def test_the_version_is_the_one_that_is_installed():
    assert importlib.metadata.version("jaxbn") == jaxbn.__version__


def test_the_version_is_that_of_the_citation():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.M).group(1) == jaxbn.__version__


def documentation(name):
    return getattr(jaxbn, name).__doc__


def test_every_public_name_has_documentation():
    lines = {name: len(documentation(name).splitlines()) for name in FUNCTIONS | TYPES}
    assert {name for name, count in lines.items() if count <= 3} == set()


def test_every_public_function_shows_an_example():
    functions = FUNCTIONS - {"implementations"}
    assert {name for name in functions if ">>> " not in documentation(name)} == set()


# One idea that a second file would only hide.
LONGER = {
    "jaxbn/core/batch_norm.py": 300,
    "jaxbn/core/calculus.py": 320,
    "jaxbn/variants/domains.py": 320,
    "jaxbn/variants/hooks.py": 280,
}


def test_a_file_is_one_idea_of_at_most_250_lines():
    def find(file):
        limit = LONGER.get(path_of(file), 250)
        lines = len(file.read_text(encoding="utf-8").splitlines())
        return lines if lines > limit else None

    assert violations(SOURCES, find) == {}


def test_every_file_says_what_it_is():
    def find(file):
        text = file.read_text(encoding="utf-8")
        return text.strip() and not ast.get_docstring(tree_of(file))

    assert violations(SOURCES, find) == {}


def modules():
    names = []
    for file in SOURCES:
        dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        names.append(dotted.removesuffix(".__init__"))
    return names


# What the examples of a module need beside the package.
PEERS = {
    "jaxbn.equinox": "equinox",
    "jaxbn.interop.equinox": "equinox",
    "jaxbn.interop.haiku": "haiku",
    "jaxbn.interop.keras": "keras",
    "jaxbn.interop.torch": "torch",
    "jaxbn.interop.torch_checks": "torch",
}


def wrong_examples(module):
    """How many examples fail, or are not run; what they print tells more."""
    loaded = importlib.import_module(module)
    names = {"jaxbn": jaxbn, "jnp": jnp, "jax": jax}
    result = doctest.testmod(loaded, extraglobs=names)
    assert loaded.__file__
    written = Path(loaded.__file__).read_text(encoding="utf-8").count(">>> ")
    return result.failed + abs(written - result.attempted)


@pytest.mark.parametrize("module", [name for name in modules() if name not in PEERS])
def test_the_examples_in_the_documentation_run(module):
    assert wrong_examples(module) == 0


@pytest.mark.parametrize("module", PEERS)
def test_the_examples_with_other_libraries_run(module, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    needs(PEERS[module])
    assert wrong_examples(module) == 0
