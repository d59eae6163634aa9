"""One finished run, made once; tests that need to damage it take a copy."""

import contextlib
import shutil
from io import StringIO

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from train_runs import TINY, run_train, use_small_net


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    """Lets runs with the same net share what was compiled, while these tests last."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="session")
def finished_and_said(tmp_path_factory):
    """The directory of a finished run, what it printed, and what it told of itself."""
    out, said, told = (
        tmp_path_factory.mktemp("runs") / "finished",
        StringIO(),
        StringIO(),
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(told),
    ):
        use_small_net(patch)
        assert run_train("--out", out, *TINY) == 0
    return out, said.getvalue(), told.getvalue()


@pytest.fixture(scope="session")
def finished_once(finished_and_said):
    return finished_and_said[0]


@pytest.fixture
def finished(finished_once, tmp_path):
    return shutil.copytree(finished_once, tmp_path / "run")


@pytest.fixture
def small_net(monkeypatch):
    use_small_net(monkeypatch)
