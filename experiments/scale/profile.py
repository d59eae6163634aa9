"""A trace of some steps, for XProf."""

import contextlib
from pathlib import Path
from typing import Any

import jax


class Profile(contextlib.ExitStack):
    """Traces steps into `out/profile`, as far as the session takes them.

    Use it with `with`: a trace is written however the session ends.

    Attributes:
        out: directory of the run.
        steps: which ones, as steps taken before them; empty for none.
        runs: whether the trace has begun and not ended.
    """

    def __init__(self, out: Path, steps: range):
        super().__init__()
        self.out, self.steps, self.runs = out, steps, False

    def before(self, step: int) -> None:
        """Begins the trace if `step`, counted from 1, is one of the steps."""
        # A session that goes on from a later step traces those that are left.
        if step - 1 in self.steps and not self.runs:
            jax.profiler.start_trace(str(self.out / "profile"))
            self.callback(jax.profiler.stop_trace)
            self.runs = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after the last of its steps, once `result` is there."""
        if self.runs and step == self.steps.stop:
            jax.block_until_ready(result)
            self.runs = False
            self.close()
