"""Freed memory is kept, in a process that asks for it."""

import json
import platform
import subprocess
import sys

import pytest

import jaxbn

HERE = "glibc" in platform.libc_ver()
FAULTS = """
import json, resource, sys, jax, jax.numpy as jnp, jaxbn

def faults(x):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(double(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "first" in sys.argv:
    jaxbn.keep_freed_memory()
double = jax.jit(lambda x: 2 * x)
arrays = [jnp.ones(n * 2**20) for n in (10, 17)]  # 40 MB, and above a thread's heap
if "later" in sys.argv:
    [faults(x) for x in arrays]
    jaxbn.keep_freed_memory()
# A heap grows until there is a place for whatever is alive, later on a busy machine.
# Where nothing is kept every call faults.
calls = [[faults(x) for _ in range(20)] for x in arrays]
print(json.dumps([sorted(each)[4] for each in calls]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="not the GNU C library")
def test_a_large_result_costs_no_page_faults_any_more():
    found = {}
    for when in ("never", "first", "later"):
        run = [sys.executable, "-c", FAULTS, when]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        found[when] = json.loads(done.stdout)
    small, large = found["never"]
    assert small > 5_000 and large > 8_000
    assert max(found["first"]) < 100
    assert found["later"][0] < 100  # each thread keeps a heap of its own


def test_another_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(NotImplementedError, match="must have the GNU C library, got"):
        jaxbn.keep_freed_memory()
