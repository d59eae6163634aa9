"""The cost of the collectives of a training step: bytes, and time by a model.

**Bytes.** A layer with C channels normalizes with statistics of the whole batch, so the
devices exchange, in float32 whatever type the network computes in,

    forward    9 C numbers: mean and mean square, to 48 binary digits each,
    backward   2 C numbers: sum(dy), sum(dy (x - mean)),

each as one all-reduce. The number of examples is known from the shapes and not sent;
with a mask it is, as C more numbers. The two sums of the backward pass are also the
gradients of bias and scale, so of all G gradients, in float32 too, only the others are
summed by themselves:

    44 sum(C) + 4 (G - 2 sum(C))      bytes per step and device.

(Under `pmap`, where the gradients are summed by the caller, all of them are.)

ResNet-50 has sum(C) = 26,560 and G = 25.6 million: 1.17 MB of statistics in 106
all-reduces, 102 MB of gradients in as few as the compiler makes of them.

**Time.** An all-reduce of n bytes over p devices, with a latency of a seconds per
message and a bandwidth of b bytes per second out of each device, takes

    ring                 2 (p - 1) a + 2 (p - 1) / p  n / b,
    tree                 2 ceil(log2 p) a + 2 (p - 1) / p  n / b,
    doubling             ceil(log2 p) (a + n / b).

(Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in
MPICH, International Journal of High Performance Computing Applications 19, 2005,
https://doi.org/10.1177/1094342005051521; "tree" is Rabenseifner's halving and doubling.
The time to add is left out.) Statistics are small: what counts is the number of
all-reduces times latency, so that groups of N devices, which share statistics among
themselves only, cost log2(N) instead of log2(p). The network waits for each of them,
while gradients may be summed beside the backward pass.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

NUMBER = 4
"""Bytes of a statistic and of a gradient: float32."""


class Layer(NamedTuple):
    """A batch normalization of a network."""

    name: str
    channels: int


class Traffic(NamedTuple):
    """The contribution of each device to all-reduces in one step.

    Attributes:
        layers: all layers that share statistics.
        gradients: bytes of the gradients that are summed by themselves.
    """

    layers: tuple[Layer, ...]
    gradients: int

    @property
    def forward(self) -> int:
        """Bytes of statistics in the forward pass."""
        return sum(layer_bytes(layer)[0] for layer in self.layers)

    @property
    def backward(self) -> int:
        """Bytes of statistics in the backward pass."""
        return sum(layer_bytes(layer)[1] for layer in self.layers)

    @property
    def statistics(self) -> int:
        """Bytes of statistics."""
        return self.forward + self.backward


class Link(NamedTuple):
    """The connections between devices.

    Attributes:
        latency: seconds per message.
        bandwidth: bytes per second that a device sends.
        source: where the numbers are from.
    """

    latency: float
    bandwidth: float
    source: str


LINKS = {
    "NVLink 4": Link(
        3e-6,
        450e9,
        "bandwidth: half of the 900 GB/s in both directions of an NVIDIA H100 (data "
        "sheet); latency: assumed",
    ),
    "InfiniBand NDR": Link(
        6e-6,
        50e9,
        "bandwidth: one 400 Gb/s port per device (data sheet); latency: assumed",
    ),
    "TPU v5p": Link(
        1e-6,
        600e9,
        "bandwidth: half of the 1200 GB/s in both directions per chip "
        "(https://cloud.google.com/tpu/docs/v5p), all axes of the torus together; "
        "latency: assumed",
    ),
    "Ethernet": Link(
        30e-6, 3.1e9, "bandwidth: 25 Gb/s per device; both numbers assumed"
    ),
}
"""Examples. Peak rates: measure those of a machine before planning with them."""


def layers_of(batch_stats: Any) -> tuple[Layer, ...]:
    """The batch normalizations of a network, by its running statistics.

    Args:
        batch_stats: nested dictionaries, with an array "mean" for each layer.
    """
    leaves: dict[tuple[str, ...], Any] = flatten_dict(batch_stats)
    return tuple(
        Layer("/".join(names), math.prod(leaf.shape))
        for (*names, last), leaf in leaves.items()
        if last == "mean"
    )


def layer_bytes(layer: Layer) -> tuple[int, int]:
    """Bytes that each device contributes to the sums of both passes."""
    return 9 * layer.channels * NUMBER, 2 * layer.channels * NUMBER


def traffic(params: Any, batch_stats: Any) -> Traffic:
    """The exchange of a step that shares statistics over the whole batch.

    Args:
        params: nested dictionaries of arrays, or of their shapes.
        batch_stats: as for `layers_of`.
    """
    layers = layers_of(batch_stats)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    alone = numbers - 2 * sum(layer.channels for layer in layers)
    return Traffic(layers, NUMBER * alone)


def ring(bytes_: float, devices: int, link: Link) -> float:
    """Seconds of an all-reduce that sends pieces around a ring, twice."""
    moved = 2 * (devices - 1) / devices * bytes_ / link.bandwidth
    return 2 * (devices - 1) * link.latency + moved


def tree(bytes_: float, devices: int, link: Link) -> float:
    """Seconds of an all-reduce by recursive halving, then doubling."""
    moved = 2 * (devices - 1) / devices * bytes_ / link.bandwidth
    return 2 * math.ceil(math.log2(devices)) * link.latency + moved


def doubling(bytes_: float, devices: int, link: Link) -> float:
    """Seconds of an all-reduce in which all numbers are exchanged in every round."""
    rounds = math.ceil(math.log2(devices))
    return rounds * (link.latency + bytes_ / link.bandwidth)


def all_reduce(bytes_: float, devices: int, link: Link) -> float:
    """Seconds of an all-reduce by the fastest of the three."""
    return min(way(bytes_, devices, link) for way in (ring, tree, doubling))


def statistics_seconds(
    layers: Sequence[Layer], devices: int, link: Link, *, way=all_reduce
) -> float:
    """Seconds that a step waits for statistics shared by `devices` devices."""
    sums = [bytes_ for layer in layers for bytes_ in layer_bytes(layer)]
    return sum(way(bytes_, devices, link) for bytes_ in sums)
