"""Accelerators that are described to a compiler and need not be here.

    h100           NVIDIA H100 SXM, any number on one host: the CUDA plugin of JAX, with
                   neither a driver nor CUDA's own libraries
    v5e, v6e, v5p  Google TPU, by the topologies that libtpu knows
    here           what JAX finds, to run what is compiled

Nothing of JAX is imported before it is used: `ENVIRONMENT` must be set by then.
"""

import importlib.metadata
import importlib.util
import math
from typing import Any, NamedTuple

from experiments.common.errors import UserError

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Whatever else was set would be part of what is measured. Without a GPU nothing can
    # be timed, so the compiler must not try.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    # libtpu otherwise asks a server of the cloud what it runs on.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""Variables of a process that compiles for these devices, set before JAX starts."""

# What the driver of an H100 SXM tells the compiler, as `GpuTargetConfigProto`.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85045706752
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
HERE = "here"
_TPU = {
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"},
    "v6e": {4: "2x2", 8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"},
    "v5p": {4: "2x2x1", 8: "2x2x2", 64: "4x4x4", 512: "8x8x8", 4096: "16x16x16"},
}


class Chip(NamedTuple):
    """A kind of accelerator.

    Attributes:
        name: as in the names of programs.
        title: as people call it.
        memory: bytes that a program may use.
        on_chip: memory spaces of its compiled programs that are not its main memory.
    """

    name: str
    title: str
    memory: float
    on_chip: frozenset[int]

    @property
    def is_tpu(self) -> bool:
        """Tells whether it is one of Google's."""
        return self.name in _TPU

    @property
    def compiler(self) -> str:
        """The distribution that compiles for it."""
        return "libtpu" if self.is_tpu else "jax-cuda12-pjrt"


# On a TPU: vector memory, semaphores, scalar memory; 5 is the host's memory.
_APART = frozenset({1, 2, 3, 4})
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("h100", "H100", 80e9, frozenset()),
        Chip("v5e", "TPU v5e", 16e9, _APART),
        Chip("v6e", "TPU v6e", 32e9, _APART),
        Chip("v5p", "TPU v5p", 95e9, _APART),
        Chip(HERE, "the device here", math.inf, frozenset()),
    )
}


def devices(chip: Chip, count: int) -> list[Any]:
    """Returns `count` described devices, in the order of a mesh."""
    if chip.name == HERE:
        import jax

        return jax.devices()[:count]
    from jax.experimental import topologies

    if not chip.is_tpu:
        described = topologies.get_topology_desc(
            "", platform="cuda", target_config=_H100, topology=f"1x1x{count}"
        )
        return list(described.devices)
    known = _TPU[chip.name]
    enough = min(n for n in known if n >= count)
    described = topologies.get_topology_desc(
        f"{chip.name}:{known[enough]}", platform="tpu"
    )
    return list(described.devices)[:count]


def check(chips: set[str]) -> None:
    """Tells whether the compilers for these chips are here.

    Raises:
        UserError: if one is missing, or is not of the version of jax.
    """
    wanted = {"jax-cuda12-plugin", "jax-cuda12-pjrt"} if "h100" in chips else set()
    wanted |= {"libtpu"} if chips & set(_TPU) else set()
    for name in sorted(wanted):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                "`compiled` must find the compilers of the accelerators, got no "
                f'`{name}`. Install them: pip install "jaxbn[accelerators]".'
            ) from None
        jaxlib = importlib.metadata.version("jaxlib")
        if name != "libtpu" and found != jaxlib:
            raise UserError(
                f"`{name}` must have the version of jaxlib, {jaxlib}, got {found}. "
                f"Install it: pip install {name}=={jaxlib}."
            )
