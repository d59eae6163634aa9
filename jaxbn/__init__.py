"""Batch normalization for JAX: pure functions, explicit state, exact statistics."""

import importlib

from jaxbn.backends.dispatch import implementations as implementations
from jaxbn.core.batch_norm import batch_norm as batch_norm
from jaxbn.core.moments import merge as merge
from jaxbn.core.moments import moments as moments
from jaxbn.core.normalize import batch_norm_inference as batch_norm_inference
from jaxbn.core.normalize import normalize as normalize
from jaxbn.core.save import recompute_policy as recompute_policy
from jaxbn.core.state import init_state as init_state
from jaxbn.core.state import update as update
from jaxbn.core.types import BatchNormState as BatchNormState
from jaxbn.core.types import Moments as Moments

__version__ = "0.1.0"

# A compiled program that another process saved names the kernels when it is loaded.
implementations()

_MODULES = ("deploy", "interop", "linen", "nnx", "optim", "variants")


def __getattr__(name: str):
    # Imported when first asked for: most of them need flax, and that takes a second.
    if name in _MODULES:
        return importlib.import_module(f"jaxbn.{name}")
    raise AttributeError(f"module 'jaxbn' has no attribute {name!r}")
