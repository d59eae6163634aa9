"""Batch normalization as a flax.linen module; the mathematics is `jaxbn.batch_norm`.

Drop-in for `flax.linen.BatchNorm`: the same arguments, variables and result types.

    >>> layer = jaxbn.linen.BatchNorm(use_running_average=False, activation="relu")
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> y, changed = layer.apply(variables, x, mutable="batch_stats")
    >>> y.round(3)
    Array([[0.],
           [1.]], dtype=float32)
    >>> changed["batch_stats"]["mean"].round(3)
    Array([0.02], dtype=float32)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax import Array

import jaxbn
from jaxbn.linen_variants import BatchRenorm as BatchRenorm
from jaxbn.linen_variants import DomainBatchNorm as DomainBatchNorm
from jaxbn.linen_variants import EvalBlendBatchNorm as EvalBlendBatchNorm
from jaxbn.linen_variants import GhostBatchNorm as GhostBatchNorm
from jaxbn.linen_variants import TimestepBatchNorm as TimestepBatchNorm


class BatchNorm(nn.Module):
    """Batch normalization with running statistics in the collection "batch_stats".

    Computes `jaxbn.batch_norm` in training and `jaxbn.batch_norm_inference` with
    running averages, in at least float32, and rounds once, to the type of the result.

    Unlike in Flax: masks and uneven replicas are weighted by the values that count;
    `axis_index_groups` works wherever `axis_name` does; statistics cannot go negative
    or non-finite by cancellation; no gradient flows into running statistics.

    Attributes:
        use_running_average: normalize with the running statistics. Here or in the call.
        axis: the feature axis, or a tuple of them.
        momentum: weight of the old running value. None averages all batches equally.
        epsilon: added to the variance, > 0.
        dtype: type of the result. Default: that of `x`, scale and bias together.
        param_dtype: type of scale and bias.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: how they start.
        axis_name: mesh or vmap axes to share statistics over; not used in `init`.
        axis_index_groups: the same as `axis_groups`; ignored without `axis_name`.
        use_fast_variance: accepted and without effect, the variance is always exact.
        force_float32_reductions: if False, running statistics are stored in
            `param_dtype`. They are computed in at least float32 all the same.
        axis_groups: positions along `axis_name` that share statistics.
        activation: applied to the result; a name or a function, see `jaxbn.batch_norm`.
        save: what is kept for the backward pass, see `jaxbn.batch_norm`.
        debias: start the running average without the initial values; adds a variable
            `count`, as does `momentum=None`. See `jaxbn.update`.
        unbiased: store the unbiased variance.
        skip_nonfinite: keep batches with an infinite or NaN moment out of the running
            statistics.
        implementation: "xla", "native", or None for the fastest that is right.
    """

    use_running_average: bool | None = None
    axis: int | Sequence[int] = -1
    momentum: float | Array | None = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    axis_groups: Sequence[Sequence[int]] | None = None
    activation: str | Callable[[Array], Array] | None = None
    save: Literal["input", "output", "recompute"] = "input"
    debias: bool = False
    unbiased: bool = False
    skip_nonfinite: bool = False
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,  # noqa: FBT001 (as in Flax)
        *,
        mask: Array | None = None,
        residual: Array | None = None,
    ) -> Array:
        """Normalizes `x`, and updates the running statistics in training.

        In `init` nothing is updated and nothing shared over `axis_name`, which need
        not be bound.

        Args:
            x: the input.
            use_running_average: normalize with the running statistics.
            mask: the positions that count in the statistics, true or nonzero;
                broadcasts to the shape of `x`.
            residual: the shape of `x`; added before the activation.

        Returns:
            An array of the shape of `x`.
        """
        inference = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        x = jnp.asarray(x)
        shape = _feature_shape(x, self.axis)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            x = x.real
        stats = _variables(self, x, shape, inference=inference)
        wide = x.astype(jnp.promote_types(x.dtype, dtype))
        arguments = (wide, _state(stats, wide), scale, bias)
        options = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "residual": residual,
            "implementation": self.implementation,
        }
        if inference:
            return jaxbn.batch_norm_inference(*arguments, **options).astype(dtype)
        initializing = self.is_initializing()
        y, new = jaxbn.batch_norm(
            *arguments,
            **options,
            axis_name=None if initializing else self.axis_name,
            axis_groups=None if initializing else _groups(self),
            where=None if mask is None else jnp.asarray(mask, bool),
            momentum=self.momentum,
            debias=self.debias,
            unbiased=self.unbiased and not initializing,
            skip_nonfinite=self.skip_nonfinite,
            save=self.save,
        )
        if not initializing:
            for name, variable in stats.items():
                kind = x.dtype if self.dtype is None else self.dtype
                variable.value = _stored(getattr(new, name), variable.value, kind)
        return y.astype(dtype)


def _feature_shape(x: Array, axis: int | Sequence[int]) -> tuple[int, ...]:
    axes = axis if isinstance(axis, Iterable) else (axis,)
    return tuple(x.shape[i] for i in sorted({a % x.ndim for a in axes if x.ndim}))


def _groups(module: BatchNorm) -> Sequence[Sequence[int]] | None:
    if module.axis_index_groups is None or module.axis_name is None:
        return module.axis_groups
    if module.axis_groups is not None:
        raise ValueError(
            "`axis_index_groups` must be None with `axis_groups`, got "
            f"{module.axis_index_groups!r} and {module.axis_groups!r}. They mean the "
            "same: give one."
        )
    return module.axis_index_groups


def _variables(
    module: BatchNorm, x: Array, shape, *, inference: bool | None
) -> dict[str, nn.Variable]:
    """The running statistics by name; `count` only where the update needs it.

    A checkpoint of Flax has none. Inference goes without; training must not start it
    at zero, since the first batch would then replace what Flax has averaged.
    """
    kind = jnp.float32 if module.force_float32_reductions else module.param_dtype
    if jnp.iscomplexobj(x):
        kind = jnp.promote_types(kind, x.dtype)
    kinds = {"mean": kind, "var": kind}
    if module.debias or module.momentum is None:
        kinds["count"] = jnp.float32
    if _lacks_count(module) and "count" in kinds:
        if not inference:
            raise ValueError(
                "`variables` must have a 'count' beside 'mean' and 'var' in "
                "'batch_stats' with `debias=True` or `momentum=None`, got none (a "
                "checkpoint of Flax?). Add an array of the shape of 'mean' with the "
                "number of batches that it averages."
            )
        del kinds["count"]

    def start(name):
        return getattr(jaxbn.init_state(shape, dtype=kinds[name]), name)

    return {name: module.variable("batch_stats", name, start, name) for name in kinds}


def _lacks_count(module: BatchNorm) -> bool:
    return module.has_variable("batch_stats", "mean") and not module.has_variable(
        "batch_stats", "count"
    )


def _state(stats: dict[str, nn.Variable], x: Array) -> jaxbn.BatchNormState:
    mean, var = stats["mean"].value, stats["var"].value
    # In a checkpoint from Flax a complex mean may still be real.
    mean = mean.astype(jnp.promote_types(mean.dtype, x.dtype))
    if "count" in stats:
        return jaxbn.BatchNormState(mean, var, stats["count"].value)
    return jaxbn.init_state(mean.shape)._replace(mean=mean, var=var)


def _stored(new: Array, old: Array, kind: Dtype) -> Array:
    """`new` in the type that Flax gives the variable after a batch of type `kind`."""
    kind = jnp.promote_types(old.dtype, kind)
    return new.astype(kind if jnp.iscomplexobj(new) else jnp.finfo(kind).dtype)
