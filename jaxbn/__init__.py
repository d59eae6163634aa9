"""Batch normalization for JAX: pure functions, explicit state, exact statistics.

The functions here take and return arrays; `jaxbn.linen` and `jaxbn.nnx` have the
modules. `jaxbn.variants`, `deploy`, `interop` and `optim` are imported when first used.
"""

import importlib
import importlib.util

from jaxbn.backends.dispatch import implementations
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.moments import merge, moments
from jaxbn.core.normalize import batch_norm_inference, normalize
from jaxbn.core.save import recompute_policy
from jaxbn.core.state import init_state, update
from jaxbn.core.types import BatchNormState, Moments
from jaxbn.memory import keep_freed_memory

__version__ = "0.1.0"
__all__ = [
    "BatchNormState",
    "Moments",
    "batch_norm",
    "batch_norm_inference",
    "implementations",
    "init_state",
    "keep_freed_memory",
    "merge",
    "moments",
    "normalize",
    "recompute_policy",
    "update",
]

# A compiled program that another process saved names the kernels when it is loaded.
implementations()

_MODULES = ("deploy", "interop", "linen", "nnx", "optim", "variants")
_OPTIONAL = ("equinox",)  # for a package of the same name


def __getattr__(name: str):
    if name in _OPTIONAL:
        if importlib.util.find_spec(name) is None:  # `hasattr` and `help` go on
            raise AttributeError(
                f"module 'jaxbn' has {name!r} only beside the package of that name. "
                f"Install it: pip install {name}."
            )
        return importlib.import_module(f"jaxbn.{name}")
    # Imported when first asked for: most of them need flax, and that takes a second.
    if name in _MODULES:
        return importlib.import_module(f"jaxbn.{name}")
    is_layer = name.rstrip("123d").endswith(("Norm", "Renorm"))  # of any library
    hint = " Modules are in `jaxbn.linen` and `jaxbn.nnx`." if is_layer else ""
    raise AttributeError(f"module 'jaxbn' has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    there = [name for name in _OPTIONAL if importlib.util.find_spec(name)]
    return sorted([*__all__, *_MODULES, *there, "__version__"])
