"""One file per claim; `experiments()` lists what they declare, in their order."""

import importlib
import pkgutil
from collections.abc import Iterable

from experiments.claims.lab.experiment import Experiment
from experiments.claims.lab.rules import module_of, sha256
from experiments.common.errors import UserError


def experiments() -> dict[str, Experiment]:
    """Returns every experiment by its name, E01 first."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if "claim_" in m.name]
    found = [importlib.import_module(f"{__name__}.{name}").EXPERIMENT for name in names]
    return {one.name: one for one in sorted(found, key=lambda one: one.number)}


def chosen(names: tuple[str, ...]) -> list[Experiment]:
    """Returns the experiments called `names`, where "all" stands for all."""
    known = experiments()
    wanted = list(known) if "all" in names else list(dict.fromkeys(names))
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        got = f"got {missing[0]!r}" if missing else "got none"
        raise UserError(
            f"`NAME` must be 'all' or some of {', '.join(known)}, {got}. "
            "For example: python -m experiments run convergence."
        )
    return [known[name] for name in known if name in wanted]


def rules_of(wanted: Iterable[Experiment]) -> str:
    """Returns the SHA-256 of `claims.toml` and the files of experiments."""
    return sha256(*(module_of(one.measure) for one in wanted))
