"""The variants as flax.nnx modules; the mathematics is in `jaxbn.variants`.

All keep running statistics in `nnx.BatchStat` variables, return the type of `x` and
average without the initial values. Modes as in `jaxbn.nnx.BatchNorm`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.typing import Initializer
from jax import Array

from jaxbn.nnx_mode import NO_MODE
from jaxbn.variants import hooks, renorm_schedule, timestep

_BOUNDS = renorm_schedule.renorm_schedule()


class _Variant(hooks.Hooks, nnx.Module):
    """What all variants have.

    Args:
        num_features: number of channels.
        use_running_average: normalize with the running statistics.
        axis: the feature axis; for groups, domains and blends not the first one.
        momentum: weight of the old running value.
        epsilon: added to the variance, > 0.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: how they start.
        axis_name: mesh or vmap axes to share statistics over.
        activation: applied to the result; a name or a function.
        implementation: "xla", "native", or None for the fastest that is right.
        rngs: for the initializers.
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float | Array | None = 0.99,
        epsilon: float = 1e-5,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        axis_name: str | Sequence[str] | None = None,
        activation: str | Callable[[Array], Array] | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        start = self._start(num_features)
        for name, value in start._asdict().items():
            setattr(self, name + self.suffix, nnx.BatchStat(value))
        shape = start[0].shape[-1:] if self.shared_affine else start[0].shape

        def parameter(initializer):
            return nnx.Param(initializer(rngs.params(), shape, jnp.float32))

        self.scale = parameter(scale_init) if use_scale else nnx.data(None)
        self.bias = parameter(bias_init) if use_bias else nnx.data(None)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        if axis_name is not None and not isinstance(axis_name, str):
            axis_name = tuple(axis_name)
        self.axis_name = axis_name
        self.activation = activation
        self.implementation = implementation

    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,  # noqa: FBT001 (as in Flax)
        *,
        mask: Array | None = None,
        residual: Array | None = None,
        **which: Any,
    ) -> Array:
        """Normalizes `x`; further arguments are those of `jaxbn.nnx.BatchNorm`."""
        modes = use_running_average, self.use_running_average
        evaluates = first_from(*modes, error_msg=NO_MODE)
        kind = type(self._start(1))
        names = [name + self.suffix for name in kind._fields]
        state = kind(*(getattr(self, name)[...] for name in names))
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        options = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "residual": residual,
            "implementation": self.implementation,
            **which,
        }
        where = None if mask is None else jnp.asarray(mask, bool)
        if evaluates:
            return self._evaluate(where)(x, state, scale, bias, **options)
        options |= {"axis_name": self.axis_name, "momentum": self.momentum}
        train = self._train(state)
        y, state = train(x, state, scale, bias, where=where, **options)
        for name, value in zip(names, state, strict=True):
            getattr(self, name)[...] = value
        return y

    def set_view(self, use_running_average: bool | None = None):  # noqa: FBT001
        """Sets the mode of a view made by `nnx.view`.

        Args:
          use_running_average: normalize with the running statistics.
        """  # `nnx.view_info` reads arguments that are indented by two.
        if use_running_average is not None:
            self.use_running_average = use_running_average


class GhostBatchNorm(hooks.Ghost, _Variant):
    """Normalizes groups of examples; see `jaxbn.variants.ghost.ghost_batch_norm`.

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
        self.ghost_batch_size, self.update = ghost_batch_size, update
        super().__init__(num_features, **options)


class BatchRenorm(hooks.Renorm, _Variant):
    """Batch renormalization; see `jaxbn.variants.renorm.batch_renorm`.

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
        self.r_max, self.d_max = r_max, d_max
        super().__init__(num_features, **options)


class TimestepBatchNorm(hooks.Timestep, _Variant):
    """Statistics per time step; see `jaxbn.variants.timestep.timestep_batch_norm`.

    Call it as `layer(x, t=t)`.

    Args:
        max_steps: how many steps have statistics of their own.
        options: those of all variants; `scale_init` starts at 0.1 if not given.

    Example:
        >>> layer = jaxbn.nnx.TimestepBatchNorm(1, max_steps=2, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.array([[1.0], [3.0]]), t=1)
        >>> layer.mean_of_each[...].ravel()
        Array([0., 2.], dtype=float32)
    """

    def __init__(self, num_features: int, *, max_steps: int, **options: Any):
        self.max_steps = max_steps
        small = nnx.initializers.constant(timestep.SCALE)
        super().__init__(num_features, **{"scale_init": small, **options})


class DomainBatchNorm(hooks.Domain, _Variant):
    """Statistics per domain; see `jaxbn.variants.domains.domain_batch_norm`.

    Call it as `layer(x, domain=domain)`, with a number or one for each example.

    Args:
        num_domains: number of domains.
        shared_affine: one scale and bias for all, or else one for each domain.
        options: those of all variants, for example `momentum`, `axis_name`, `rngs`.

    Example:
        >>> layer = jaxbn.nnx.DomainBatchNorm(1, num_domains=2, rngs=nnx.Rngs(0))
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
        self.num_domains, self.shared_affine = num_domains, shared_affine
        super().__init__(num_features, **options)


class EvalBlendBatchNorm(hooks.EvalBlend, _Variant):
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
        self.alpha = nnx.BatchStat(self._first_alpha(alpha))
        super().__init__(num_features, **options)

    def _alpha(self):
        return self.alpha[...]
