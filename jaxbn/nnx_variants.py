"""The variants as flax.nnx modules; the mathematics is in `jaxbn.variants`.

Arguments, variables, types and modes are those of `jaxbn.nnx.BatchNorm`, see
`jaxbn.nnx_base.Layer`.
"""

from collections.abc import Callable
from typing import Any, Literal

from flax import nnx
from jax import Array

from jaxbn.nnx_base import Layer
from jaxbn.variants import hooks, renorm_schedule, timestep

_BOUNDS = renorm_schedule()


class GhostBatchNorm(hooks.Ghost, Layer):
    """Normalizes groups of examples; see `jaxbn.variants.ghost_batch_norm`.

    Args:
        ghost_batch_size: examples of a group, of the global batch in order.
        update: "pooled" or "sequential".
        options: those of all variants, for example `momentum`, `axis_name`, `rngs`.

    Example:
        >>> layer = jaxbn.nnx.GhostBatchNorm(1, ghost_batch_size=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0], [3.0], [10.0], [30.0]])).ravel().round(3)
        Array([-1.,  1., -1.,  1.], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch_size: int,
        update: Literal["pooled", "sequential"] = "pooled",
        **options: Any,
    ):
        self._check({"ghost_batch_size": ghost_batch_size, "update": update})
        self.ghost_batch_size, self.update = ghost_batch_size, update
        super().__init__(num_features, **options)

    __call__ = Layer.__call__


class BatchRenorm(hooks.Renorm, Layer):
    """Batch renormalization; see `jaxbn.variants.batch_renorm`.

    Args:
        r_max, d_max: the bounds: numbers, or functions of the number of updates.
            Default: the schedule of the paper, `jaxbn.variants.renorm_schedule`.
        options: those of all variants, for example `momentum`, `axis_name`, `rngs`.

    Example:
        >>> layer = jaxbn.nnx.BatchRenorm(1, r_max=3.0, d_max=5.0, rngs=nnx.Rngs(0))
        >>> x = jnp.array([[1.0], [3.0]])
        >>> jnp.allclose(layer(x), x)  # Within the bounds, with mean 0 and sigma 1.
        Array(True, dtype=bool)
    """

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float | Callable[[Array], Array] = _BOUNDS.r_max,
        d_max: float | Callable[[Array], Array] = _BOUNDS.d_max,
        **options: Any,
    ):
        self._check({"r_max": r_max, "d_max": d_max})
        self.r_max, self.d_max = r_max, d_max
        super().__init__(num_features, **options)

    __call__ = Layer.__call__


class TimestepBatchNorm(hooks.Timestep, Layer):
    """Statistics per time step; see `jaxbn.variants.timestep_batch_norm`.

    Call it as `layer(x, t=t)`.

    Args:
        max_steps: how many steps have statistics of their own.
        options: those of all variants; `scale_init` starts at 0.1 if not given.

    Example:
        >>> options = {"max_steps": 2, "debias": True, "rngs": nnx.Rngs(0)}
        >>> layer = jaxbn.nnx.TimestepBatchNorm(1, **options)
        >>> y = layer(jnp.array([[1.0], [3.0]]), t=1)
        >>> layer.mean_of_each[...].ravel()
        Array([0., 2.], dtype=float32)
    """

    def __init__(self, num_features: int, *, max_steps: int, **options: Any):
        self._check({"max_steps": max_steps})
        self.max_steps = max_steps
        small = nnx.initializers.constant(timestep.SCALE)
        super().__init__(num_features, **{"scale_init": small, **options})

    __call__ = Layer.__call__


class DomainBatchNorm(hooks.Domain, Layer):
    """Statistics per domain; see `jaxbn.variants.domain_batch_norm`.

    Call it as `layer(x, domain=domain)`, with a number or one for each example.

    Args:
        num_domains: number of domains.
        shared_affine: one scale and bias for all, or else one for each domain.
        options: those of all variants, for example `momentum`, `axis_name`, `rngs`.

    Example:
        >>> options = {"num_domains": 2, "debias": True, "rngs": nnx.Rngs(0)}
        >>> layer = jaxbn.nnx.DomainBatchNorm(1, **options)
        >>> y = layer(jnp.array([[1.0], [3.0], [10.0]]), domain=jnp.array([0, 0, 1]))
        >>> layer.mean_of_each[...].ravel()
        Array([ 2., 10.], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_domains: int,
        shared_affine: bool = True,
        **options: Any,
    ):
        self._check({"num_domains": num_domains, "shared_affine": shared_affine})
        self.num_domains, self.shared_affine = num_domains, shared_affine
        super().__init__(num_features, **options)

    __call__ = Layer.__call__


class EvalBlendBatchNorm(hooks.EvalBlend, Layer):
    """Evaluation that blends in each example; see `jaxbn.variants.eval_blend`.

    Training is that of `jaxbn.batch_norm`. The weight is the variable `alpha`, to be
    set for each layer with `fit_eval_blend`.

    Args:
        alpha: the weight of the example's own statistics to start with, in [0, 1].
        options: those of all variants, for example `momentum`, `axis_name`, `rngs`.

    Example:
        >>> layer = jaxbn.nnx.EvalBlendBatchNorm(1, alpha=0.5, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[[1.0], [3.0]]]), True).ravel().round(3)
        Array([0.   , 1.414], dtype=float32)
    """

    def __init__(self, num_features: int, *, alpha: float = 0.0, **options: Any):
        self._check({"alpha": alpha})
        self.alpha = nnx.BatchStat(self._first_alpha(alpha))
        super().__init__(num_features, **options)

    __call__ = Layer.__call__

    def _alpha(self):
        return self.alpha[...]
