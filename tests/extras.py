"""Packages that some tests need beside those of the extra `test`."""

import importlib
import os
import sys
import warnings

import pytest

# What the extra `test-all` leaves out on some versions of Python.
UNAVAILABLE = {"torch"} if sys.version_info >= (3, 12) else set()


def needs(package, *, extra="test-all"):
    """Return the module of that name, or skip the test or file that asks for it.

    With `JAXBN_ALL_EXTRAS` (CI with everything installed) a package that is missing is
    a failure, so that no test is skipped unseen. CI runs again what it finds in the
    file `JAXBN_SKIPPED`: a line for each test or file that was skipped here.
    """
    root = package.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are not about this package
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != root:
            raise  # it is there, and what it imports is not
    if skipped := os.environ.get("JAXBN_SKIPPED"):
        test = os.environ.get("PYTEST_CURRENT_TEST")
        asks = test.rpartition(" (")[0] if test else sys._getframe(1).f_code.co_filename
        with open(skipped, "a", encoding="utf-8") as file:
            file.write(f"{asks}\n")
    reason = f"needs {package}: install the extra `{extra}`"
    if os.environ.get("JAXBN_ALL_EXTRAS") and root not in UNAVAILABLE:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
