"""The variants as flax.linen modules; the mathematics is in `jaxbn.variants`.

Arguments, variables and types are those of `jaxbn.linen.BatchNorm`, see
`jaxbn.linen_base.Layer`. In `init` they normalize with the initial statistics.
"""

from collections.abc import Callable
from typing import Literal

from flax import linen as nn
from flax.typing import Initializer
from jax import Array

from jaxbn.linen_base import Layer
from jaxbn.variants import hooks, renorm_schedule, timestep

_BOUNDS = renorm_schedule()


class GhostBatchNorm(hooks.Ghost, Layer, kw_only=True):
    """Normalizes groups of examples; see `jaxbn.variants.ghost_batch_norm`.

    Attributes:
        ghost_batch_size: examples of a group, of the global batch in order.
        update: "pooled" or "sequential".

    Example:
        >>> layer = jaxbn.linen.GhostBatchNorm(ghost_batch_size=2)
        >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
        >>> variables = layer.init(jax.random.key(0), x, False)
        >>> layer.apply(variables, x, False, mutable="batch_stats")[0].ravel().round(3)
        Array([-1.,  1., -1.,  1.], dtype=float32)
    """

    ghost_batch_size: int
    update: Literal["pooled", "sequential"] = "pooled"


class BatchRenorm(hooks.Renorm, Layer):
    """Batch renormalization; see `jaxbn.variants.batch_renorm`.

    Attributes:
        r_max, d_max: the bounds: numbers, or functions of the number of updates.
            Default: the schedule of the paper, `jaxbn.variants.renorm_schedule`.

    Example:
        >>> layer = jaxbn.linen.BatchRenorm(r_max=3.0, d_max=5.0)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> variables = layer.init(jax.random.key(0), x, False)
        >>> y, _ = layer.apply(variables, x, False, mutable="batch_stats")
        >>> jnp.allclose(y, x)  # Within the bounds, with running mean 0 and sigma 1.
        Array(True, dtype=bool)
    """

    r_max: float | Callable[[Array], Array] = _BOUNDS.r_max
    d_max: float | Callable[[Array], Array] = _BOUNDS.d_max


class TimestepBatchNorm(hooks.Timestep, Layer, kw_only=True):
    """Statistics per time step; see `jaxbn.variants.timestep_batch_norm`.

    Call it as `layer(x, t=t)`. In `nn.scan` carry the statistics, with
    `variable_carry="batch_stats"`, and take the variables from `init` of one step:
    Flax carries no variable that is not there before the loop.

    Attributes:
        max_steps: how many steps have statistics of their own.

    Example:
        >>> layer = jaxbn.linen.TimestepBatchNorm(max_steps=2, debias=True)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> variables = layer.init(jax.random.key(0), x, False, t=0)
        >>> _, new = layer.apply(variables, x, False, t=1, mutable="batch_stats")
        >>> new["batch_stats"]["mean_of_each"].ravel()
        Array([0., 2.], dtype=float32)
    """

    max_steps: int
    scale_init: Initializer = nn.initializers.constant(timestep.SCALE)


class DomainBatchNorm(hooks.Domain, Layer, kw_only=True):
    """Statistics per domain; see `jaxbn.variants.domain_batch_norm`.

    Call it as `layer(x, domain=domain)`, with a number or one for each example.

    Attributes:
        num_domains: number of domains.
        shared_affine: one scale and bias for all, or else one for each domain.

    Example:
        >>> layer = jaxbn.linen.DomainBatchNorm(num_domains=2, debias=True)
        >>> x, domain = jnp.array([[1.0], [3.0], [10.0]]), jnp.array([0, 0, 1])
        >>> start = layer.init(jax.random.key(0), x, False, domain=domain)
        >>> _, new = layer.apply(start, x, False, domain=domain, mutable="batch_stats")
        >>> new["batch_stats"]["mean_of_each"].ravel()
        Array([ 2., 10.], dtype=float32)
    """

    num_domains: int
    shared_affine: bool = True


class EvalBlendBatchNorm(hooks.EvalBlend, Layer):
    """Evaluation that blends in each example; see `jaxbn.variants.eval_blend`.

    Training is that of `jaxbn.batch_norm`. The weight is a variable "alpha" in
    "batch_stats", to be set for each layer with `fit_eval_blend`.

    Attributes:
        alpha: the weight of the example's own statistics to start with, in [0, 1].

    Example:
        >>> layer = jaxbn.linen.EvalBlendBatchNorm(alpha=0.5, use_running_average=True)
        >>> x = jnp.array([[[1.0], [3.0]]])
        >>> layer.init_with_output(jax.random.key(0), x)[0].ravel().round(3)
        Array([0.   , 1.414], dtype=float32)
    """

    alpha: float = 0.0

    @nn.nowrap
    def _alpha(self):
        start = self.variable("batch_stats", "alpha", self._first_alpha, self.alpha)
        return start.value
