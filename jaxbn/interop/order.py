"""The order in which the layers of a model were defined, as far as it can be known."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

# Names in the order in which they are held, by the path of what holds them.
Names = Mapping[str, list[str]]


def in_order(paths: Iterable[str], names: Names, sign: str) -> list[str]:
    """Sorts paths as their layers were defined: as held, or else by their numbers.

    Args:
        paths: of layers.
        names: what the model holds.
        sign: between the parts of a path.
    """

    def ranks(path: str) -> list:
        parts, places = path.split(sign), []
        for i, part in enumerate(parts):
            held = names.get(sign.join(parts[:i]), [])
            known = _is_kept(held) and part in held
            place = held.index(part) if known else len(held)
            places.append([place, *_natural(part)])
        return places

    return sorted(paths, key=ranks)


def doubt(paths: Sequence[str], names: Names, sign: str) -> tuple[str, str] | None:
    """Finds two neighbours that may have been defined the other way round.

    JAX sorts names wherever a tree passes, and nnx where a model is split and merged.
    So an order that is not alphabetical was kept, one that is may have been lost; then
    the order is known by numbers, as in "Conv_9" and "Conv_10", or because both sides
    have parts that were not sorted.
    """
    kept = [path for path, held in names.items() if _is_kept(held)]

    def known(first: str, second: str) -> bool:
        ours, theirs = first.split(sign), second.split(sign)
        same = [a == b for a, b in zip(ours, theirs, strict=False)]
        at = same.index(False) if False in same else len(same)
        if sign.join(ours[:at]) in kept or at == min(len(ours), len(theirs)):
            return True
        if re.sub(r"\d+", "", ours[at]) == re.sub(r"\d+", "", theirs[at]):
            return True
        if sign.join(ours[:at]) not in names:
            return False
        starts = (sign.join(parts[: at + 1]) for parts in (ours, theirs))
        return all(any(f"{k}{sign}".startswith(s + sign) for k in kept) for s in starts)

    pairs = itertools.pairwise(paths)
    return next((pair for pair in pairs if not known(*pair)), None)


def names_of(keys: Iterable[str], sign: str) -> dict[str, list[str]]:
    """The names at each level of paths, in their order."""
    found: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(sign)
        for i, part in enumerate(parts):
            held = found.setdefault(sign.join(parts[:i]), [])
            if part not in held:
                held.append(part)
    return found


def _is_kept(held: list[str]) -> bool:
    return held != sorted(held)


def _natural(name: str) -> list:
    """A key that sorts "Conv_10" behind "Conv_9"."""
    parts = enumerate(re.split(r"(\d+)", name))
    return [int(part) if i % 2 else part for i, part in parts]
