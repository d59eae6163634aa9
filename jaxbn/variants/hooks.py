"""What a layer of each variant calls, whoever holds its variables.

Classes to inherit from: the modules of Flax add what is said about them in annotations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxbn.core import checks
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.normalize import batch_norm_inference
from jaxbn.core.state import init_state
from jaxbn.variants import domains, eval_blend, ghost, renorm, timestep


class Hooks:
    """Those of ordinary batch normalization."""

    suffix: Any = ""
    """Of the names of the statistics."""
    has_moments: Any = True
    """Whether mean and var are those of everything that the layer is called on."""
    shared_affine: Any = True
    """Whether scale and bias have the shape of the features only."""

    axis: Any

    def _features(self, x: Array) -> int:
        """The length of the feature axis."""
        (place,) = checks.feature_axes(x, self.axis)
        return x.shape[place]

    def _start(self, features: int) -> Any:
        """The statistics before the first batch."""
        return init_state(features)

    def _train(self, state: Any) -> Callable[..., tuple[Array, Any]]:
        return batch_norm

    def _evaluate(self, where: Array | None) -> Callable[..., Array]:
        return batch_norm_inference


class Ghost(Hooks):
    """Statistics of groups of examples."""

    ghost_batch_size: Any
    update: Any

    def _train(self, state):
        sizes = {"ghost_batch_size": self.ghost_batch_size, "update": self.update}
        return functools.partial(ghost.ghost_batch_norm, **sizes)


class Renorm(Hooks):
    """Statistics corrected towards the running ones."""

    r_max: Any
    d_max: Any
    has_moments = False

    def _start(self, features):
        return renorm.init_renorm_state(features)

    def _train(self, state):
        bounds = {"r_max": self.r_max, "d_max": self.d_max}
        now = {k: v(state.count.max()) if callable(v) else v for k, v in bounds.items()}
        return functools.partial(renorm.batch_renorm, **now)

    def _evaluate(self, where):
        def evaluate(*arrays, epsilon, **options):  # which is in sigma already
            return renorm.batch_renorm_inference(*arrays, **options)

        return evaluate


class Timestep(Hooks):
    """Statistics for each time step."""

    max_steps: Any
    # Not "mean": there, tools for whole models expect the statistics of every call.
    suffix, has_moments = "_of_each", False

    def _start(self, features):
        return timestep.init_timestep_state(self.max_steps, features)

    def _train(self, state):
        return timestep.timestep_batch_norm

    def _evaluate(self, where):
        return timestep.timestep_batch_norm_inference


class Domain(Hooks):
    """Statistics for each domain."""

    num_domains: Any
    suffix, has_moments = "_of_each", False

    def _start(self, features):
        return domains.init_domain_state(self.num_domains, features)

    def _train(self, state):
        return domains.domain_batch_norm

    def _evaluate(self, where):
        return domains.domain_batch_norm_inference


class EvalBlend(Hooks):
    """A share of each example's own statistics at evaluation."""

    def _first_alpha(self, alpha: float | Array) -> Array:
        checks.share("alpha", alpha)
        return jnp.asarray(alpha)

    def _alpha(self) -> Array:
        raise NotImplementedError

    def _evaluate(self, where):
        return functools.partial(
            eval_blend.eval_blend, alpha=self._alpha(), where=where
        )
