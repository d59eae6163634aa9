"""One run that nothing interrupts, to compare those with that are interrupted."""

import pytest
from scale_runs import train


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def whole(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("scale") / "whole"
    return train(out, cache, "--tensorboard", profile="3:2")
