"""The networks of the notes run and learn."""

import pytest

from experiments.claims.networks import NETWORKS, train


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_learn(name):
    assert train(*NETWORKS[name], steps=40) > 0.7
