"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxbn
import jaxbn.deploy
import jaxbn.interop
import jaxbn.variants

PACKAGES = [jaxbn.deploy, jaxbn.interop, jaxbn.variants]
MODULES = [
    f"{package.__name__}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", [*MODULES, "jaxbn.core.pool", "jaxbn.optim"])
def test_examples_run(name):
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp, "jaxbn": jaxbn} | vars(module)
    assert doctest.testmod(module, globs=names).failed == 0
