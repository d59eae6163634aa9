"""Batch normalization as a flax.nnx module; the mathematics is `jaxbn.batch_norm`.

Drop-in for `flax.nnx.BatchNorm`: the same arguments, variables and result types.

    >>> layer = jaxbn.nnx.BatchNorm(1, activation="relu", rngs=nnx.Rngs(0))
    >>> x = jnp.array([[1.0], [3.0]])
    >>> layer(x).round(3)
    Array([[0.],
           [1.]], dtype=float32)
    >>> layer.mean[...].round(3)
    Array([0.02], dtype=float32)
    >>> layer.eval()
    >>> (layer(x) > 0).all()
    Array(True, dtype=bool)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn.dtypes import canonicalize_dtype, promote_dtype
from flax.typing import Dtype, Initializer, PromoteDtypeFn
from jax import Array

import jaxbn
from jaxbn.nnx_mode import NO_MODE
from jaxbn.nnx_variants import BatchRenorm as BatchRenorm
from jaxbn.nnx_variants import DomainBatchNorm as DomainBatchNorm
from jaxbn.nnx_variants import EvalBlendBatchNorm as EvalBlendBatchNorm
from jaxbn.nnx_variants import GhostBatchNorm as GhostBatchNorm
from jaxbn.nnx_variants import TimestepBatchNorm as TimestepBatchNorm


class BatchNorm(nnx.Module):
    """Batch normalization with running statistics in `nnx.BatchStat` variables.

    Computes `jaxbn.batch_norm` in training and `jaxbn.batch_norm_inference` with
    running averages, in at least float32, and rounds once, to the type of the result.

    Unlike in Flax: masks may be of any type, and masks and uneven replicas are weighted
    by the values that count; `axis_index_groups` works wherever `axis_name` does;
    neither `x` nor a running statistic is rounded to `dtype` before it is used; no
    gradient flows into running statistics.

    Args:
        num_features: size of the feature axis; a tuple where `axis` is one.
        use_running_average: normalize with the running statistics.
        axis: the feature axis, or a tuple of them.
        momentum: weight of the old running value. None averages all batches equally.
        epsilon: added to the variance, > 0.
        dtype: type of the result. Default: that of `x` and all variables together.
        param_dtype: type of scale and bias.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: how they start.
        axis_name: mesh or vmap axes to share statistics over.
        axis_index_groups: the same as `axis_groups`; ignored without `axis_name`.
        use_fast_variance: accepted and without effect, the variance is always exact.
        promote_dtype: decides the type of the result where `dtype` is None.
        rngs: for the initializers.
        bias_metadata, scale_metadata: of the two parameters, for example sharding.
        axis_groups: positions along `axis_name` that share statistics.
        activation, save: see `jaxbn.batch_norm`.
        debias: start the running average without the initial values; adds a variable
            `count`, as does `momentum=None`. See `jaxbn.update`.
        unbiased: store the unbiased variance.
        skip_nonfinite: keep batches with an infinite or NaN moment out of the running
            statistics.
        implementation: "xla", "native", or None for the fastest that is right.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: int | Sequence[int] = -1,
        momentum: float | Array | None = 0.99,
        epsilon: float = 1e-5,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        axis_name: str | Sequence[str] | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        axis_groups: Sequence[Sequence[int]] | None = None,
        activation: str | Callable[[Array], Array] | None = None,
        save: Literal["input", "output", "recompute"] = "input",
        debias: bool = False,
        unbiased: bool = False,
        skip_nonfinite: bool = False,
        implementation: str | None = None,
    ):
        start = jaxbn.init_state(num_features)
        self.mean, self.var = nnx.BatchStat(start.mean), nnx.BatchStat(start.var)
        if debias or momentum is None:
            self.count = nnx.BatchStat(start.count)

        def parameter(initializer, metadata):
            values = initializer(rngs.params(), start.mean.shape, param_dtype)
            return nnx.Param(values, **metadata)

        none = nnx.data(None)
        self.scale = parameter(scale_init, scale_metadata) if use_scale else none
        self.bias = parameter(bias_init, bias_metadata) if use_bias else none
        if axis_groups is not None and axis_index_groups is not None:
            raise ValueError(
                "`axis_index_groups` must be None with `axis_groups`, got "
                f"{axis_index_groups!r} and {axis_groups!r}. Give one of them."
            )
        self.num_features = _hashable(num_features)
        self.use_running_average = use_running_average
        self.axis = _hashable(axis)
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = _hashable(axis_name)
        self.axis_index_groups = _hashable(axis_index_groups)
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.axis_groups = _hashable(axis_groups)
        self.activation = activation
        self.save: Literal["input", "output", "recompute"] = save
        self.debias = debias
        self.unbiased = unbiased
        self.skip_nonfinite = skip_nonfinite
        self.implementation = implementation

    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,  # noqa: FBT001 (as in Flax)
        *,
        mask: Array | None = None,
        residual: Array | None = None,
    ) -> Array:
        """Normalizes `x`, and updates the running statistics in training.

        Args:
            x: the input.
            use_running_average: normalize with the running statistics. Default: as
                given to the constructor, `train()`, `eval()` or `nnx.view`.
            mask: the positions that count in the statistics, true or nonzero;
                broadcasts to the shape of `x`.
            residual: the shape of `x`; added before the activation.

        Returns:
            An array of the shape of `x`.
        """
        inference = first_from(
            use_running_average, self.use_running_average, error_msg=NO_MODE
        )
        x = jnp.asarray(x)
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        dtype = self._result_type(x, scale, bias)
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            x = x.real
        wide = x.astype(jnp.promote_types(x.dtype, dtype))
        arguments = (wide, self._state(wide), scale, bias)
        options = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "residual": residual,
            "implementation": self.implementation,
        }
        if inference:
            return jaxbn.batch_norm_inference(*arguments, **options).astype(dtype)
        by_position = None if self.axis_name is None else self.axis_index_groups
        y, new = jaxbn.batch_norm(
            *arguments,
            **options,
            axis_name=self.axis_name,
            axis_groups=by_position if self.axis_groups is None else self.axis_groups,
            where=None if mask is None else jnp.asarray(mask, bool),
            momentum=self.momentum,
            debias=self.debias,
            unbiased=self.unbiased,
            skip_nonfinite=self.skip_nonfinite,
            save=self.save,
        )
        for name in self._statistics():
            _store(getattr(self, name), getattr(new, name))
        return y.astype(dtype)

    def set_view(self, use_running_average: bool | None = None):  # noqa: FBT001
        """Sets the mode of a view made by `nnx.view`.

        Args:
          use_running_average: normalize with the running statistics.
        """  # `nnx.view_info` reads arguments that are indented by two.
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _statistics(self) -> list[str]:
        return [name for name in jaxbn.BatchNormState._fields if hasattr(self, name)]

    def _state(self, x: Array) -> jaxbn.BatchNormState:
        values = {name: getattr(self, name)[...] for name in self._statistics()}
        mean = values.pop("mean")
        # A complex mean starts as a real one.
        mean = mean.astype(jnp.promote_types(mean.dtype, x.dtype))
        return jaxbn.init_state(mean.shape)._replace(mean=mean, **values)

    def _result_type(self, x: Array, scale: Array | None, bias: Array | None) -> Dtype:
        """What Flax returns; the values themselves stay unrounded."""
        if self.dtype is None:
            together = (x, self.mean[...], self.var[...], scale, bias)
            x, _, _, scale, bias = self.promote_dtype(together, dtype=None)
        return canonicalize_dtype(x, scale, bias, dtype=self.dtype)


def _hashable(value: Any) -> Any:
    """Lists as tuples, so that the graph definition can be a static argument."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_hashable, value))
    return int(value) if isinstance(value, np.integer) else value


def _store(variable: nnx.Variable, new: Array) -> None:
    """Keeps the type of the variable, except that a complex mean stays complex."""
    old = variable[...]
    if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):
        variable.set_value(new)
    else:
        variable[...] = new.astype(old.dtype)
