"""Programs that XLA compiles for accelerators that are not here.

Programs are compiled for a described H100 and for topologies of TPUs, and read; none of
them is run. `compiled.json` grows with every program and a second run does the rest,
`compiled.md` has all tables, `compiled.png` the layers and the steps.
"""

from experiments.bench import main as bench
from experiments.bench.compilers import devices, largest, plot, programs, run, table
from experiments.common import files
from experiments.common.errors import writing


def measure(config: bench.BenchConfig) -> tuple[dict, str]:
    """Returns one record a program and Markdown tables, of earlier runs too."""
    batches = largest.plan() if config.max_batch else []
    wanted = programs.plan(quick=config.quick) if not config.max_batch else []
    named = {largest.name_of(p): p for p in batches} | {p.name: p for p in wanted}
    kept = [named[name] for name in programs.chosen(list(named), config.only)]
    devices.check({p.chip for p in kept})
    store = run.Store(config.out)
    if config.max_batch:
        for program in kept:
            largest.search(program, store, again=config.again)
    else:
        run.compile_all(kept, store, again=config.again)
    records = list(store.records.values())
    tables = table.tables(records)
    with writing(config.out):
        files.write_bytes(config.out / "compiled.md", f"{tables}\n".encode())
        plot.draw(records, config.out / "compiled.png")
    return {"programs": records}, tables
