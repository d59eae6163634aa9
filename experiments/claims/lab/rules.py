"""What `claims.toml` holds: what is claimed, by whom, and the rule that decides it."""

import functools
import hashlib
import inspect
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from experiments.claims.lab.table import Table

Kind = Literal["effect", "all", "exact"]
_PATH = Path(__file__).parents[1] / "claims.toml"
_WORDS = ("quotes", "literature")  # What decides nothing.


class Quote(msgspec.Struct, forbid_unknown_fields=True):
    """The sentence of a note, and its English."""

    source: str
    text: str
    english: str = ""


class Wording(Quote, kw_only=True):
    """A sentence that is wrong as it stands, what is right, and code that shows it."""

    right: str
    code: str


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """The rule of a claim in words and numbers; `claims.toml` explains the fields."""

    text: str
    measure: str
    unit: str
    least: float
    shown: Literal["x", "100 x", "2^x", "10^x", "-x", "1 - x"] = "x"
    scale: Annotated[float, msgspec.Meta(gt=0)] | None = None
    kind: Kind = "effect"
    design: str = ""
    published: Literal["", "supported", "contradicted", "qualified"] = ""
    literature: str = ""
    quotes: list[Quote] = []


class Claims(msgspec.Struct, forbid_unknown_fields=True):
    """All of `claims.toml`."""

    alpha: float
    looks: list[int]
    sources: dict[str, str]
    wording: list[Wording]
    rules: dict[str, Entry]

    @property
    def family(self) -> list[str]:
        """The claims that Holm's correction counts, whichever of them are run."""
        return [
            name
            for name, one in self.rules.items()
            if "." not in name and one.kind != "exact"
        ]


@functools.cache
def claims() -> Claims:
    """Returns what `claims.toml` holds, with the lines of its texts joined."""
    found = tomllib.loads(_PATH.read_text(encoding="utf-8"))
    return msgspec.convert(_joined(found), Claims)


class Rule(NamedTuple):
    """The rule that decides one claim, or is shown beside it.

    Attributes:
        name: its key in `claims.toml`: "C08" decides the claim, "C08.groups" is shown
            beside it.
        values: from the runs to one number for each start, large if the claim holds;
            for the kind "all" an array (parts, starts).
    """

    name: str
    values: Callable[[Table], np.ndarray]

    @property
    def entry(self) -> Entry:
        """The rule in words and numbers."""
        return claims().rules[self.name]

    @property
    def claim(self) -> str:
        """The number of its claim, such as "C08"."""
        return self.name.partition(".")[0]

    @property
    def headline(self) -> bool:
        """Tells whether it decides the claim."""
        return self.name == self.claim


def sha256(*modules: ModuleType) -> str:
    """Returns the hash of what decides.

    That is every rule of `claims.toml` without quotes and literature, and the claim
    files after their docstrings, which hold nets, grids, steps and data.
    """
    content = msgspec.to_builtins(claims())
    rules = {
        name: {key: value for key, value in rule.items() if key not in _WORDS}
        for name, rule in content["rules"].items()
    }
    kept = {"alpha": content["alpha"], "looks": content["looks"], "rules": rules}
    found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for module in modules:
        found.update(inspect.getsource(module).split('"""', 2)[-1].encode())
    return found.hexdigest()


def module_of(function: Callable) -> ModuleType:
    """Returns the claim file that a function is of."""
    return sys.modules[function.__module__]


def _joined(value: Any) -> Any:
    """The content with the lines of every text joined, but for code."""
    if isinstance(value, dict):
        return {k: v.strip() if k == "code" else _joined(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_joined(item) for item in value]
    return " ".join(value.split()) if isinstance(value, str) else value
