"""The locks of CI fit pyproject.toml: on Python 3.11 they have its lower bounds."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / ".ci" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INSTALLED = {"3.11": {"dev", "accelerators"}, "3.13": {"test-all"}}
WITHOUT_HASH = {"torch"}  # see .ci/lock

pytestmark = pytest.mark.skipif(
    not LOCKS.exists(), reason="not in the source distribution"
)


def pins(lock):
    """Versions by name; each has a hash."""
    text = (LOCKS / lock).read_text(encoding="utf-8")
    assert "://" not in text
    found = re.findall(r"^(\S+)==(\S+) \\\n +--hash=sha256:", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\w", text, re.MULTILINE))
    return dict(found)


def direct(texts, python):
    """The requirements of other packages, those of our own extras included."""
    extras = PROJECT["project"]["optional-dependencies"]
    found = []
    for requirement in map(Requirement, texts):
        if requirement.name == "jaxbn":
            for extra in requirement.extras:
                found += direct(extras[extra], python)
        elif not requirement.marker or requirement.marker.evaluate(
            {"python_version": python}
        ):
            found.append(requirement)
    return [r for r in found if r.name not in WITHOUT_HASH]


def asked(kind, python):
    if kind == "build":
        return direct(PROJECT["build-system"]["requires"], python)
    ours = f"jaxbn[{','.join(INSTALLED[python])}]"
    return direct([*PROJECT["project"]["dependencies"], ours], python)


def wanted(specifier, python):
    """What the lock may have: with the oldest Python the lower bound only."""
    if python != "3.11":
        return specifier
    (lower,) = (s.version for s in specifier if s.operator in (">=", "=="))
    return specifier & SpecifierSet(f"=={lower}")


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("kind", ["run", "build"])
def test_the_locks_fit_pyproject_toml(kind, python):
    locked = pins(f"{kind}-{python}.txt")
    requirements = asked(kind, python)
    assert requirements
    wrong = {}
    for requirement in requirements:
        version = locked.get(canonicalize_name(requirement.name))
        allowed = wanted(requirement.specifier, python)
        if version is None or version not in allowed:
            wrong[str(requirement)] = version
    assert wrong == {}, "run .ci/lock"
