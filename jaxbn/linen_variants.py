"""The variants as flax.linen modules; the mathematics is in `jaxbn.variants`.

All keep running statistics in the collection "batch_stats", return the type of `x` and
average without the initial values. In `init` they normalize with the initial ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import Array

from jaxbn.variants import hooks, renorm_schedule, timestep

_BOUNDS = renorm_schedule.renorm_schedule()


class _Variant(hooks.Hooks, nn.Module):
    """What all variants have.

    Attributes:
        use_running_average: normalize with the running statistics. Here or in the call.
        axis: the feature axis; for groups, domains and blends not the first one.
        momentum: weight of the old running value.
        epsilon: added to the variance, > 0.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: how they start.
        axis_name: mesh or vmap axes to share statistics over; not used in `init`.
        activation: applied to the result; a name or a function.
        implementation: "xla", "native", or None for the fastest that is right.
    """

    use_running_average: bool | None = None
    axis: int = -1
    momentum: float | Array | None = 0.99
    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | Sequence[str] | None = None
    activation: str | Callable[[Array], Array] | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,  # noqa: FBT001 (as in Flax)
        *,
        mask: Array | None = None,
        residual: Array | None = None,
        **which: Any,
    ) -> Array:
        """Normalizes `x`; further arguments are those of `jaxbn.linen.BatchNorm`."""
        modes = self.use_running_average, use_running_average
        evaluates = nn.merge_param("use_running_average", *modes)
        state = self._read(self._start(self._features(x)))
        shape = state[0].shape[-1:] if self.shared_affine else state[0].shape
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape) if self.use_bias else None
        options = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "residual": residual,
            "implementation": self.implementation,
            **which,
        }
        where = None if mask is None else jnp.asarray(mask, bool)
        if evaluates or self.is_initializing():
            return self._evaluate(where)(x, state, scale, bias, **options)
        options |= {"axis_name": self.axis_name, "momentum": self.momentum}
        train = self._train(state)
        y, state = train(x, state, scale, bias, where=where, **options)
        for name, value in state._asdict().items():
            self.put_variable("batch_stats", name + self.suffix, value)
        return y

    def _read(self, start: Any) -> Any:
        """The running statistics, a NamedTuple as `start`."""

        def stored(name, value):
            name = name + self.suffix
            return self.variable("batch_stats", name, lambda: value).value

        return type(start)(**{k: stored(k, v) for k, v in start._asdict().items()})


class GhostBatchNorm(hooks.Ghost, _Variant, kw_only=True):
    """Normalizes groups of examples; see `jaxbn.variants.ghost.ghost_batch_norm`.

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


class BatchRenorm(hooks.Renorm, _Variant):
    """Batch renormalization; see `jaxbn.variants.renorm.batch_renorm`.

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


class TimestepBatchNorm(hooks.Timestep, _Variant, kw_only=True):
    """Statistics per time step; see `jaxbn.variants.timestep.timestep_batch_norm`.

    Call it as `layer(x, t=t)`. In `nn.scan` carry the statistics, with
    `variable_carry="batch_stats"`, and take the variables from `init` of one step:
    Flax carries no variable that is not there before the loop.

    Attributes:
        max_steps: how many steps have statistics of their own.

    Example:
        >>> layer = jaxbn.linen.TimestepBatchNorm(max_steps=2)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> variables = layer.init(jax.random.key(0), x, False, t=0)
        >>> _, new = layer.apply(variables, x, False, t=1, mutable="batch_stats")
        >>> new["batch_stats"]["mean_of_each"].ravel()
        Array([0., 2.], dtype=float32)
    """

    max_steps: int
    scale_init: Initializer = nn.initializers.constant(timestep.SCALE)


class DomainBatchNorm(hooks.Domain, _Variant, kw_only=True):
    """Statistics per domain; see `jaxbn.variants.domains.domain_batch_norm`.

    Call it as `layer(x, domain=domain)`, with a number or one for each example.

    Attributes:
        num_domains: number of domains.
        shared_affine: one scale and bias for all, or else one for each domain.

    Example:
        >>> layer = jaxbn.linen.DomainBatchNorm(num_domains=2)
        >>> x, domain = jnp.array([[1.0], [3.0], [10.0]]), jnp.array([0, 0, 1])
        >>> start = layer.init(jax.random.key(0), x, False, domain=domain)
        >>> _, new = layer.apply(start, x, False, domain=domain, mutable="batch_stats")
        >>> new["batch_stats"]["mean_of_each"].ravel()
        Array([ 2., 10.], dtype=float32)
    """

    num_domains: int
    shared_affine: bool = True


class EvalBlendBatchNorm(hooks.EvalBlend, _Variant):
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

    def _alpha(self):
        start = self.variable("batch_stats", "alpha", self._first_alpha, self.alpha)
        return start.value
