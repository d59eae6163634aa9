"""Every tool around the layer has an example."""

import inspect

import jaxbn
import jaxbn.deploy
import jaxbn.interop
import jaxbn.linen
import jaxbn.nnx
import jaxbn.optim
import jaxbn.variants

LINES = 20


def own_functions(module):
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and value.__module__.startswith(module.__name__)
    }


def tools():
    """Public functions by name, and the modules."""
    found = {}
    for package in (jaxbn.deploy, jaxbn.interop, jaxbn.optim, jaxbn.variants):
        found |= own_functions(package)
    for package in (jaxbn.linen, jaxbn.nnx):
        for name, value in vars(package).items():
            if inspect.isclass(value) and name.endswith(("BatchNorm", "Renorm")):
                found[f"{package.__name__}.{name}"] = value
    return found


TOOLS = tools()


def example(tool):
    """The lines of code in the docstring, or for BatchNorm in that of the file."""
    text = tool.__doc__
    if tool.__name__ == "BatchNorm":
        text = inspect.getmodule(tool).__doc__
    starts = (">>> ", "... ")
    return [line for line in text.splitlines() if line.strip().startswith(starts)]


def test_there_are_all():
    assert len(TOOLS) > 50
    assert {"fold_nnx", "recalibrate", "accumulate", "eval_blend"} <= TOOLS.keys()
    assert {"jaxbn.linen.BatchRenorm", "jaxbn.nnx.GhostBatchNorm"} <= TOOLS.keys()


def test_each_shows_an_example_of_few_lines():
    lines = {name: len(example(tool)) for name, tool in TOOLS.items()}
    assert {name: n for name, n in lines.items() if not 0 < n <= LINES} == {}
