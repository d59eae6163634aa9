"""Tables of what the compiled programs move, run and need."""

from typing import Any

from experiments.bench.compilers import devices
from experiments.common.tables import markdown

Record = dict[str, Any]
_NOTE = """Compiled, not run. One cell: bytes moved over the bytes of x (one device,
main memory), kernels, all-reduces, and conditionals if there are any. On a TPU, whose
on-chip memory may hold a whole x, the compiler's own count of all memories is in
brackets."""
_STEP_NOTE = """Compiled, not run: the whole training step, per chip. Bytes: main
memory; in brackets by the compiler, with what it moves between memories."""


def tables(records: list[Record]) -> str:
    """Returns all tables as Markdown."""
    parts = [
        _table(records, "layer", _layers, _NOTE),
        _table(records, "step", _steps, _STEP_NOTE),
        _table(records, "largest", _largest, "Largest batch of the step that fits."),
    ]
    return "\n\n".join(filter(None, parts))


def _table(records: list[Record], kind: str, make: Any, note: str) -> str:
    mine = [r for r in records if r["kind"] == kind]
    return f"{' '.join(note.split())}\n\n{make(mine)}" if mine else ""


def _layers(records: list[Record]) -> str:
    norms = _unique(r["norm"] for r in records)
    rows = []
    for key in _unique(map(_key, records)):
        mine = {r["norm"]: r for r in records if _key(r) == key}
        rows.append([*key, *(_cell(mine.get(norm)) for norm in norms)])
    header = ["chip", "type", "x on a device", "operation", "devices", "parallel"]
    return markdown([*header, *norms], rows)


def _key(record: Record) -> tuple[str, ...]:
    return (
        devices.CHIPS[record["chip"]].title,
        record["type"],
        "x".join(map(str, record["shape"])),
        "plain" if record["activation"] == "none" else record["activation"],
        f"{record['devices']:,}",
        record["parallel"],
    )


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    if "error" in record:
        return "not compiled"
    by_compiler = record["bytes_by_compiler_over_x"]
    ratio = f"{record['bytes_over_x']:.2f}"
    ratio += f" ({by_compiler:.2f})" if by_compiler else ""
    figures = [ratio, str(record["kernels"]), str(record["all_reduce"])]
    branches = record["conditionals"]
    return ", ".join(figures + ([f"{branches} cond."] if branches else []))


def _steps(records: list[Record]) -> str:
    header = ["chip", "chips", "images a chip", "normalization", "GB moved", "kernels"]
    header += ["all-reduces", "conditionals", "temporary, GB", "seconds to compile"]
    return markdown(header, [_step(record) for record in records])


def _step(record: Record) -> list[str]:
    start = [devices.CHIPS[record["chip"]].title, f"{record['devices']:,}"]
    start += [str(record["shape"][0]), record["norm"]]
    if "error" in record:
        return [*start, f"not compiled: {record['error']}", *[""] * 5]
    by_compiler = record["bytes_by_compiler"]
    moved = _gigabytes(record["bytes"])
    moved += f" ({_gigabytes(by_compiler)})" if by_compiler else ""
    whole = [str(record[k]) for k in ("kernels", "all_reduce", "conditionals")]
    rest = [_gigabytes(record["temp"]), f"{record['seconds']:.0f}"]
    return [*start, moved, *whole, *rest]


def _largest(records: list[Record]) -> str:
    header = ["chip", "memory, GB", "normalization", "largest batch", "needs, GB"]
    rows = []
    for record in records:
        batch = str(record["batch"])
        needs = record["needed"].get(batch)
        said = batch if record["finished"] else f"at least {batch}"
        rows.append(
            [
                devices.CHIPS[record["chip"]].title,
                f"{record['memory'] / 1e9:.0f}",
                record["norm"],
                f"{said} (in steps of {record['multiple_of']})",
                _gigabytes(needs) if needs else "",
            ]
        )
    return markdown(header, rows)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
