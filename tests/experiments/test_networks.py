"""The networks of the notes run and learn."""

import pytest

from experiments.networks import NETWORKS, train


@pytest.mark.parametrize("name", ["dense", "wide"])
def test_dense_networks_learn(name):
    assert train(*NETWORKS[name], steps=40) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "after", "before"])
def test_convolutional_networks_learn(name):
    assert train(*NETWORKS[name], steps=40) > 0.7
