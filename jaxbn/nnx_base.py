"""The base of all flax.nnx modules here: their variables and one call."""

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

from jaxbn import nnx_modes
from jaxbn.variants import hooks

COUNTED = "jaxbn_counted"


class Layer(nnx_modes.Modes, hooks.Hooks, nnx.Module):
    """A layer with running statistics in `nnx.BatchStat` variables.

    Args:
        num_features: size of the feature axis; a tuple where `axis` is one.
        use_running_average: normalize with the running statistics.
        axis: the feature axis, or a tuple of them; for groups, domains and blends one,
            and not the first.
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
        axis_groups: positions along `axis_name` that share statistics; not for groups
            of examples.
        activation: applied to the result; a name or a function, see `jaxbn.batch_norm`.
        save: what is kept for the backward pass, see `jaxbn.batch_norm`; not for
            groups, domains and renormalization.
        debias: start the running average without the initial values; adds a variable
            `count`, as does `momentum=None`. See `jaxbn.update`. Flax does not.
        unbiased: store the unbiased variance.
        skip_nonfinite: keep batches with an infinite or NaN moment out of the running
            statistics.
        update_statistics: if False, training leaves the running statistics as they are.
        frozen: if True, training too normalizes with the running statistics and leaves
            them, scale and bias as they are; with "statistics", scale and bias are
            trained. `optim.frozen_mask` is for the optimizer.
        implementation: "xla", "native", or None for the fastest that is right.
    """

    mean: nnx.BatchStat
    var: nnx.BatchStat

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
        update_statistics: bool = True,
        frozen: bool | Literal["statistics"] = False,
        implementation: str | None = None,
    ):
        self._check(locals())
        features = self._sizes(num_features)
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
        self.update_statistics = update_statistics
        self.frozen: bool | Literal["statistics"] = frozen
        self.implementation = implementation
        self._groups()  # refuses two of them
        start, names = self._start(features), self._names()
        mark = {COUNTED: True} if "count" in names else {}
        for field, name in names.items():
            setattr(self, name, nnx.BatchStat(getattr(start, field), **mark))
        shape = features if self.shared_affine else start.mean.shape

        def parameter(initializer, metadata):
            return nnx.Param(initializer(rngs.params(), shape, param_dtype), **metadata)

        none = nnx.data(None)
        self.scale = parameter(scale_init, scale_metadata) if use_scale else none
        self.bias = parameter(bias_init, bias_metadata) if use_bias else none

    # Each kind names it as its own, since `nnx.capture` looks in the class itself.
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,  # noqa: FBT001 (as in Flax)
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        residual: Array | None = None,
        **which: Any,
    ) -> Array:
        """Normalizes `x`, and updates the running statistics in training.

        Args:
            x: the input.
            use_running_average: normalize with the running statistics. Default: as
                given to the constructor, `train()`, `eval()` or `nnx.view`.
            mask: the positions that count in the statistics, boolean; broadcasts to the
                shape of `x`.
            weights: how much each position counts, see `jaxbn.batch_norm`.
            scale, bias: in place of the layer's own, which `use_scale` and `use_bias`
                must switch off; of each example, say, as (N, C).
            residual: the shape of `x`; added before the activation.
            which: the time step `t` or the `domain`, for layers that have them.

        Returns:
            An array of the shape of `x`.
        """
        modes = use_running_average, self.use_running_average
        inference = self._evaluates(first_from(*modes, error_msg=nnx_modes.NO_MODE))
        x = self._input(x)
        self._has_own(scale, bias)
        scale = scale if self.scale is None else self.scale[...]
        bias = bias if self.bias is None else self.bias[...]
        variables = {k: getattr(self, name) for k, name in self._names().items()}
        stored = {field: variable[...] for field, variable in variables.items()}
        dtype = self._result_type(x, stored, scale, bias)
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            x = x.real
        if not inference:
            _require_count(variables)
        wide = x.astype(jnp.promote_types(x.dtype, dtype))
        y, new = self._run(
            wide,
            self._as_state(stored, wide),
            scale,
            bias,
            evaluates=inference,
            mask=mask,
            weights=weights,
            residual=residual,
            **which,
        )
        if new is not None:
            for field, variable in variables.items():
                _store(variable, getattr(new, field))
        return y.astype(dtype)

    def _result_type(self, x: Array, stored: Any, scale: Any, bias: Any) -> Dtype:
        """Returns what Flax does; the values themselves stay unrounded."""
        if self.dtype is None:
            together = (x, *list(stored.values())[:2], scale, bias)
            x, _, _, scale, bias = self.promote_dtype(together, dtype=None)
        return canonicalize_dtype(x, scale, bias, dtype=self.dtype)


def _hashable(value: Any) -> Any:
    """Lists as tuples, so that the graph definition can be a static argument."""
    if isinstance(value, np.integer | np.ndarray | Array) and not value.ndim:
        return int(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_hashable, value))
    return value


def _require_count(variables: dict[str, nnx.Variable]) -> None:
    """Refuses averages that were loaded without their count, as from Flax.

    Zero updates would let the first batch replace them. `nnx.update` takes the metadata
    of what is loaded, so a mean from elsewhere has not the mark that its count has.
    """
    if "count" not in variables:
        return
    own = {k: COUNTED in v.get_metadata() for k, v in variables.items()}
    if own["count"] and not own["mean"]:
        raise ValueError(
            "`count` must be loaded beside `mean` and `var` with `debias=True` or "
            "`momentum=None`, got a state without it (of Flax?). Put the number of "
            "batches that it averages into the state, or into the layer: `layer.count "
            "= nnx.BatchStat(jnp.full_like(layer.mean[...], batches))`."
        )


def _store(variable: nnx.Variable, new: Array) -> None:
    """Keeps the type of the variable, except that a complex mean stays complex."""
    old = variable[...]
    if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):
        variable.set_value(new)
    else:
        variable[...] = new.astype(old.dtype)
