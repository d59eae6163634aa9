"""The documentation: `sphinx-build -W docs build/docs`, without a network."""

import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jaxbn  # noqa: E402
import jaxbn.linen_base  # noqa: E402
import jaxbn.nnx_base  # noqa: E402

project, author = "jaxbn", "The jaxbn authors"
copyright = "The jaxbn authors, Apache-2.0"
release = version = jaxbn.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
# Other projects are linked to where there is a network for their inventories.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "jax": ("https://docs.jax.dev/en/latest", None),
    "flax": ("https://flax.readthedocs.io/en/stable", None),
}

# Examples run when the pages are made, which show what they print.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
# Servers that build documentation lack it.
if importlib.util.find_spec("torch") is None:
    nb_execution_excludepatterns = ["examples/torch.md"]
myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "dollarmath",
]
myst_heading_anchors = 3
myst_links_external_new_tab = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

default_role = (
    "py:obj"  # a single backtick in a docstring: code, and a link if it can
)
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "jaxbn"
html_static_path = ["_static"]
html_css_files = ["jaxbn.css"]
html_theme_options = {
    "repository_url": "https://github.com/jaxbn/jaxbn",
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "home_page_in_toc": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search is enough
}

_HEADER = re.compile(
    r"\s*(Args|Attributes|Returns|Raises|Reference|Example)s?:$"
)


def _as_written(app, what, name, obj, options, lines):
    """Equations of docstrings stay as they are: indented blocks are literal."""
    found, before, literal = [], "", None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent < literal:
            literal = None
        if literal is None and line.strip():
            starts = number and not lines[number - 1].strip()
            deeper = indent > len(before) - len(before.lstrip())
            if starts and deeper and before and not _HEADER.match(before):
                margin = before[: len(before) - len(before.lstrip())]
                found += [f"{margin}::", ""]
                literal = indent
        is_code = literal is not None or line.lstrip().startswith(
            (">>>", "...")
        )
        found.append(line if is_code else line.replace("|", r"\|"))
        before = line if line.strip() else before
    lines[:] = found


def _signature(app, what, name, obj, options, signature, returns):
    """The arguments of a Flax module as they are written in a call."""
    bases = jaxbn.linen_base.Layer, jaxbn.nnx_base.Layer
    if what != "class" or not issubclass(obj, bases):
        return None
    shown = []
    for item in inspect.signature(obj.__init__).parameters.values():
        if item.name in ("self", "parent", "name"):
            continue
        if item.kind is item.VAR_KEYWORD:
            shown.append(f"**{item.name}")
            continue
        if item.kind is item.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        value = getattr(item.default, "__name__", repr(item.default))
        value = {"mappingproxy({})": "{}"}.get(value, value)
        value = "..." if value.startswith("<") else value
        no_default = item.default is item.empty
        shown.append(item.name if no_default else f"{item.name}={value}")
    return f"({', '.join(shown)})", None


def _results(app, docname, source):
    """The page of claims ends with the summary that the results come with."""
    page = ROOT / "results" / "README.md"
    if docname == "claims" and page.exists():
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"^#", "##", text, flags=re.MULTILINE)
        text = re.sub(r"(!\[[^]]*\]\()(?!\w+:)", r"\1../results/", text)
        files = "https://github.com/jaxbn/jaxbn/blob/main/results/"
        text = re.sub(r"((?<!!)\[[^]]*\]\()(?![\w+]+:|#)", rf"\1{files}", text)
        source[0] += f"\n{text}"


def setup(app):
    app.connect("source-read", _results)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _as_written, priority=100)
