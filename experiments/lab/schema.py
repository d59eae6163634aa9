"""What the files of a run hold: names, types, allowed values.

A specification is a type, a set of allowed values, a list with the specification of its
items, or a dictionary; `Optional` allows null.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.lab.store import SCHEMA


class Optional(NamedTuple):
    """Null, or what `inner` says."""

    inner: Any


class Mapping(NamedTuple):
    """Any names, with values as `inner` says."""

    inner: Any


NUMBER = (int, float)
_LARGEST = 1e300
_VERDICT = {
    "claim": str,
    "experiment": str,
    "text": str,
    "verdict": {"supported", "contradicted", "inconclusive", "not run"},
    "literature": {"", "supported", "contradicted", "qualified"},
    "effect": str,
    "least": NUMBER,
    "scale": NUMBER,
    "mean": Optional(NUMBER),
    "low": Optional(NUMBER),
    "high": Optional(NUMBER),
    "p": Optional(NUMBER),
    "n": Optional(int),
    "p_adjusted": NUMBER,
    "command": str,
}
_INTERVAL = Optional([Optional(NUMBER)])
_EFFECT = {**_VERDICT, "bootstrap": _INTERVAL, "t": _INTERVAL, "headline": bool}
_PRESETS = {"smoke", "quick", "standard"}
_HEAD = {"schema": {SCHEMA}, "preset": _PRESETS, "seed": int}

FILES: dict[str, Any] = {
    "config.json": {
        "names": [str],
        "preset": _PRESETS,
        "seed": int,
        "data_dir": Optional(str),
    },
    "environment.json": {
        "python": str,
        "system": str,
        "machine": str,
        "cpu_count": Optional(int),
        "jaxbn": str,
        "packages": Mapping(Optional(str)),
        "backend": str,
        "devices": [str],
        "matmul_precision": Optional(str),
        "x64": bool,
        "git": Optional({"commit": str, "dirty": bool}),
    },
    "runs.jsonl": [
        {
            "schema": {SCHEMA},
            "experiment": str,
            "arm": str,
            "cell": Mapping((int, float, str)),
            "start": int,
            "metrics": Mapping(Optional(NUMBER)),
            "series": Mapping([Optional((int, float, list))]),
        }
    ],
    "summary.csv": str,
    "effects.json": {**_HEAD, "effects": [_EFFECT]},
    "verdicts.json": {**_HEAD, "verdicts": [_VERDICT]},
    "timings.json": {
        "schema": {SCHEMA},
        "seconds": NUMBER,
        "arms": Mapping(Mapping(NUMBER)),
    },
}


def problems(name: str, content: Any) -> list[str]:
    """Returns where `content` differs from the specification of the file `name`."""
    return list(_problems(content, FILES[name], "it"))


def _problems(value: Any, spec: Any, where: str) -> Iterator[str]:
    if isinstance(spec, Optional):
        if value is not None:
            yield from _problems(value, spec.inner, where)
    elif isinstance(spec, list) and isinstance(value, list):
        for n, item in enumerate(value):
            yield from _problems(item, spec[0], f"{where}[{n}]")
    elif isinstance(spec, dict | Mapping) and isinstance(value, dict):
        inner = (
            {key: spec.inner for key in value} if isinstance(spec, Mapping) else spec
        )
        if set(value) != set(inner):
            yield f"{where} must have the keys {sorted(inner)}, got {sorted(value)}"
            return
        for key, item in value.items():
            yield from _problems(item, inner[key], f"{where}[{key!r}]")
    elif not _is(value, spec):
        yield f"{where} must be {_named(spec)}, got {value!r:.80}"


def _is(value: Any, spec: Any) -> bool:
    if isinstance(spec, set):
        return value in list(spec)
    if isinstance(spec, list | dict | Mapping):
        return False
    if isinstance(value, int | float) and not abs(value) < _LARGEST:
        return False  # JSON of Python has NaN and integers that no float holds
    flag = isinstance(value, bool) and spec not in (bool, object)
    return isinstance(value, spec) and not flag


def _named(spec: Any) -> str:
    if isinstance(spec, set):
        return f"one of {sorted(spec, key=str)}"
    if isinstance(spec, tuple) and not isinstance(spec, Mapping):
        return " or ".join(kind.__name__ for kind in spec)
    return spec.__name__ if isinstance(spec, type) else "an object or a list"
