"""Freed memory is kept, in a process that asks for it."""

import json
import platform
import subprocess
import sys

import pytest

import jaxbn

HERE = "glibc" in platform.libc_ver()
FAULTS = """
import json, resource, jax, jax.numpy as jnp, jaxbn

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        jax.block_until_ready(double(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

double = jax.jit(lambda x: 2 * x)
x = jnp.ones(10 * 2**20)  # 40 MB
found = [faults(), faults()]
jaxbn.keep_freed_memory()
faults()  # each thread has its own first
print(json.dumps([*found, faults(), faults()]))
"""


@pytest.mark.skipif(not HERE, reason="not the GNU C library")
def test_a_large_result_costs_no_page_faults_any_more():
    run = [sys.executable, "-c", FAULTS]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    _, before, _, after = json.loads(done.stdout)
    assert before > 50_000 and after < before / 4  # a thread may begin another heap


def test_another_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(NotImplementedError, match="must have the GNU C library, got"):
        jaxbn.keep_freed_memory()
