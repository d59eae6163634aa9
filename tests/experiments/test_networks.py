"""The networks of the notes run and learn."""

import pytest

from experiments.claims.networks import NETWORKS, train

SLOW = [n for n in NETWORKS if n != "dense"]


@pytest.mark.parametrize(
    "name", ["dense", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_the_networks_learn(name):
    assert train(*NETWORKS[name], steps=40) > 0.7
