"""python -m jaxbn: what to paste into a bug report."""

import importlib.metadata
import platform

import jax

import jaxbn


def report() -> str:
    """Versions, devices and implementations, a line each."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    lines = [
        f"jaxbn {jaxbn.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        f"{jax.device_count()} x {devices} ({jax.default_backend()})",
    ]
    for name, reason in jaxbn.implementations().items():
        lines.append(f"{name}: {'available' if reason is None else reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
