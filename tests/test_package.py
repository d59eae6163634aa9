"""The house: public names, who may import whom, size of files, runnable examples."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxbn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxbn"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
FUNCTIONS = {
    "batch_norm", "batch_norm_inference", "implementations", "init_state", "merge",
    "moments", "normalize", "recompute_policy", "update",
}  # fmt: skip
TYPES = {"BatchNormState", "Moments"}
COLLECTIVES = {
    "psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute",
    "psum_scatter", "axis_index",
}  # fmt: skip


def path_of(file):
    return str(file.relative_to(ROOT))


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


ALLOWED = {
    "core": ("jaxbn.core.", "jaxbn.backends."),
    "backends": ("jaxbn.backends.", "jaxbn.core.types."),
    "variants": ("jaxbn.core.", "jaxbn.variants.", "jaxbn."),
    "deploy": ("jaxbn.core.", "jaxbn.deploy.", "jaxbn."),
    "interop": ("jaxbn.core.", "jaxbn.interop.", "jaxbn."),
    "optim": ("jaxbn.core.", "jaxbn."),
}


def test_variants_need_no_import_of_their_own():
    names = {f.stem for f in (PACKAGE / "variants").glob("[a-z]*.py")} - {"hooks"}
    program = f"import jaxbn; [getattr(jaxbn.variants, n) for n in {sorted(names)}]"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


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


@pytest.mark.parametrize("file", SOURCES, ids=path_of)
def test_imports_follow_the_arrows(file):
    assert forbidden_imports(file) == []


@pytest.mark.parametrize("file", EXPERIMENTS, ids=path_of)
def test_experiments_import_public_names_only(file):
    own = [name for name in imports(file) if f"{name}.".startswith("jaxbn.")]
    assert [name for name in own if not is_public(name)] == []


@pytest.mark.parametrize("file", SOURCES + EXPERIMENTS, ids=path_of)
def test_nothing_private_of_jax_is_used(file):
    assert not [name for name in imports(file) if "jax._src" in name]
    assert "_src" not in attributes(file)


# `checks.axis_size` is not a collective: psum of the constant 1 is the axis size.
OUTSIDE = {"jaxbn/core/sync.py"}
EXCEPTIONS = {"jaxbn/core/checks.py": {"psum"}}


@pytest.mark.parametrize("file", SOURCES, ids=path_of)
def test_collectives_are_in_one_file(file):
    if path_of(file) in OUTSIDE:
        return
    used = attributes(file) & COLLECTIVES
    assert used - EXCEPTIONS.get(path_of(file), set()) == set()


def test_the_exception_for_psum_is_the_size_of_an_axis():
    text = (PACKAGE / "core" / "checks.py").read_text()
    assert re.findall(r"psum\([^)]*\)", text) == ["psum(1, axis_name)"]


@pytest.mark.parametrize("file", SOURCES, ids=path_of)
def test_flax_is_imported_by_the_adapters_only(file):
    if file.name.removesuffix(".py").split("_")[0] in ("linen", "nnx"):
        return
    own_flax = [n for n in imports(file) if n.split(".")[0] == "flax"]
    assert own_flax == []


@pytest.mark.parametrize("module", ["flax", "optax", "chex", "torch", "keras"])
def test_importing_the_package_loads_nothing_it_does_not_need(module):
    code = f"import jaxbn, sys; raise SystemExit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_package_starts_no_backend():
    code = (
        "import jaxbn, jax; jax.config.update('jax_num_cpu_devices', 3); "
        "raise SystemExit(jax.device_count() != 3)"
    )
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)


def test_the_public_functions_are_those_of_the_design():
    public = {
        name
        for name, value in vars(jaxbn).items()
        if callable(value) and not name.startswith("_")
    }
    assert public == FUNCTIONS | TYPES


@pytest.mark.parametrize("name", sorted(FUNCTIONS | TYPES))
def test_every_public_name_has_documentation(name):
    assert len(getattr(jaxbn, name).__doc__.splitlines()) > 3


@pytest.mark.parametrize("name", sorted(FUNCTIONS - {"implementations"}))
def test_every_public_function_shows_an_example(name):
    assert ">>> " in getattr(jaxbn, name).__doc__


@pytest.mark.parametrize("file", SOURCES, ids=path_of)
def test_a_file_is_one_idea_of_at_most_250_lines(file):
    # The layer alone is longer: a third of it is the documentation of its arguments.
    limit = 320 if file.name == "batch_norm.py" else 250
    assert len(file.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("file", SOURCES, ids=path_of)
def test_every_file_says_what_it_is(file):
    text = file.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def modules():
    names = []
    for file in SOURCES:
        dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        names.append(dotted.removesuffix(".__init__"))
    return names


# What the examples of a module need beside the package.
PEERS = {
    "jaxbn.interop.equinox": "equinox",
    "jaxbn.interop.haiku": "haiku",
    "jaxbn.interop.keras": "keras",
    "jaxbn.interop.torch": "torch",
}


@pytest.mark.parametrize("module", modules())
def test_the_examples_in_the_documentation_run(module, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    if module in PEERS:
        pytest.importorskip(PEERS[module])
    names = {"jaxbn": jaxbn, "jnp": jnp, "jax": jax}
    loaded = importlib.import_module(module)
    result = doctest.testmod(loaded, extraglobs=names)
    assert result.failed == 0
    assert loaded.__file__
    written = Path(loaded.__file__).read_text(encoding="utf-8").count(">>> ")
    assert result.attempted == written


def test_the_example_in_the_readme_runs():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not written yet")
    text = readme.read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block, "README.md must contain a ```python block"
    exec(compile(block[1], "README.md", "exec"), {"__name__": "__main__"})
