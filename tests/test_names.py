"""A newcomer finds what there is by completion, help and a wrong guess."""

import pydoc

import pytest

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn import deploy, interop, optim


def test_completion_lists_functions_and_modules_only():
    names = [name for name in dir(jaxbn) if not name.startswith("_")]
    assert {"batch_norm", "linen", "nnx", "variants", "deploy"} <= set(names)
    assert "importlib" not in names
    assert all(hasattr(jaxbn, name) for name in names)


@pytest.mark.parametrize(
    "module", [jaxbn, jaxbn.linen, jaxbn.nnx, deploy, interop, optim]
)
def test_help_shows_what_a_module_offers(module):
    text = pydoc.plain(pydoc.render_doc(module))
    public = [name for name in module.__all__ if f" {name}" not in text]
    assert module.__all__ and not public


@pytest.mark.parametrize("name", ["BatchNorm", "SyncBatchNorm", "BatchNorm2d"])
def test_a_module_of_another_library_points_to_ours(name):
    with pytest.raises(AttributeError, match=r"`jaxbn\.linen` and `jaxbn\.nnx`"):
        getattr(jaxbn, name)


def test_a_module_for_a_package_that_is_missing_says_which(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AttributeError, match="Install it: pip install equinox"):
        jaxbn.__getattr__("equinox")
    assert "equinox" not in dir(jaxbn)
