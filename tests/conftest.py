"""Eight CPU devices, strict promotion in the core, a quick hypothesis and compiler.

Most of the time goes into compiling thousands of programs that run once. They are
compiled without optimization, in half the time; with `JAXBN_OPTIMIZED=1` they are the
programs that users get (CI: the slow tests of the core and the kernels).

A process keeps what it compiled, which is about a megabyte for each program. It is
forgotten as soon as the process is large, which compiles less anew than forgetting it
after each file would. A compilation cache on disk costs more than it saves here.
"""

import ctypes
import gc
import importlib.metadata
import os
import resource
from pathlib import Path

if "JAXBN_OPTIMIZED" not in os.environ:  # before JAX reads it
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.metadata.version("jax").startswith("0.10."):  # later ones lack it
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

import hypothesis
import jax
import pytest

gc.disable()  # until everything is imported
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile(
    "quick",
    deadline=None,
    max_examples=int(os.environ.get("JAXBN_EXAMPLES", "8")),
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("quick")


class Memory:
    """Megabytes that a process may keep; where Linux does not tell, all it wants."""

    statm = Path("/proc/self/statm")
    limit = 1000  # the largest test adds a few hundred

    def resident(self):
        if not self.statm.exists():
            return 0
        return int(self.statm.read_text().split()[1]) * resource.getpagesize() >> 20

    def keep_small(self):
        """Forget what was compiled, and give its memory back to the system."""
        if self.resident() <= self.limit:
            return
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        # What other libraries hold stays; do not try again after every test.
        self.limit = max(self.limit, self.resident() + 200)


MEMORY = Memory()


def pytest_collection_finish():
    """What is imported stays; look for garbage less often than after 700 objects.

    Tracing makes so many that the collector took a tenth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """Look at the memory after the fixtures of a test have let go."""
    yield
    MEMORY.keep_small()


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """The core must never rely on an implicit broadcast or a mixture of types."""
    if request.path.parent.name not in ("core", "backends"):
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
