"""Compares the outputs of a model before and after a fold."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn.core import options, trees
from jaxbn.core.records import COUNT


def tolerance_of(value: Any) -> Any:
    """The largest accepted error, or None for one that fits the types."""
    if value is None:
        return None
    hint = "Leave it out for one that fits the types of the model."
    return options.number("tolerance", value, *COUNT, hint=hint)


def example_of(value: Any) -> Any:
    """The example, whose values must not hide what a fold changes."""
    example = trees.of_arrays("example", value)
    leaves = jax.tree.leaves(example)
    if not any((leaf != 0).any() for leaf in leaves):
        raise ValueError(
            "`example` must have a value that is not zero, got arrays of shapes "
            f"{[leaf.shape for leaf in leaves]}. Pass a batch of data, since zeros "
            "hide what a fold changes."
        )
    return example


def require_telling(outputs: Any) -> None:
    """Refuses outputs that hide what a fold changes."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
    if not any(jnp.issubdtype(v.dtype, jnp.inexact) and (v != 0).any() for v in leaves):
        raise ValueError(
            "`call` must return floating point numbers that are not all zero, got "
            f"{[str(jax.typeof(v)) for v in leaves]}. Return the values before "
            "decisions are made, as logits, and pass a batch of data as `example`."
        )


def difference_of(got: Any, want: Any) -> float:
    """The largest difference, each array divided by its largest finite value."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return float(np.max([_relative(*pair) for pair in pairs], initial=0))


def _relative(got: Any, want: Any) -> float:
    wide = np.complex128 if jnp.iscomplexobj(want) else np.float64
    got, want = (np.asarray(v).astype(wide) for v in (got, want))
    size = np.abs(want[np.isfinite(want)]).max(initial=np.finfo(np.float32).tiny)
    differ = got != want  # so that equal infinities do not
    return float(np.abs(got[differ] - want[differ]).max(initial=0)) / float(size)


def coarsest(arrays: Iterable[Any]) -> Any:
    """The `jnp.finfo` of the type with the fewest digits."""
    kinds = {jnp.result_type(a) for a in arrays}
    floats = [jnp.finfo(k) for k in kinds if jnp.issubdtype(k, jnp.inexact)]
    return max(floats, key=lambda f: f.eps, default=jnp.finfo(jnp.float32))
