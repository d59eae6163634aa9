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
    for _ in range(10):
        jax.block_until_ready(double(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "first" in sys.argv:
    jaxbn.keep_freed_memory()
double = jax.jit(lambda x: 2 * x)
arrays = [jnp.ones(n * 2**20) for n in (10, 25)]  # 40 MB, and above a thread's heap
if "later" in sys.argv:
    [faults(x) for x in arrays]
    jaxbn.keep_freed_memory()
print(json.dumps([min(faults(x) for _ in range(4)) for x in arrays]))
"""


@pytest.mark.skipif(not HERE, reason="not the GNU C library")
def test_a_large_result_costs_no_page_faults_any_more():
    found = {}
    for when in ("never", "first", "later"):
        run = [sys.executable, "-c", FAULTS, when]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        found[when] = json.loads(done.stdout)
    small, large = found["never"]
    assert small > 50_000 and large > 125_000
    assert max(found["first"]) < 25_000
    assert found["later"][0] < small / 4  # a thread may begin another heap


def test_another_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(NotImplementedError, match="must have the GNU C library, got"):
        jaxbn.keep_freed_memory()
