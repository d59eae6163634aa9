"""The base of all flax.linen modules here: their variables and one call."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax import Array

from jaxbn.variants import hooks


class Layer(hooks.Hooks, nn.Module):
    """A layer with running statistics in the collection "batch_stats".

    Attributes:
        use_running_average: normalize with the running statistics. Here or in the call.
        axis: the feature axis, or a tuple of them; for groups, domains and blends one,
            and not the first.
        momentum: weight of the old running value. None averages all batches equally.
        epsilon: added to the variance, > 0.
        dtype: type of the result. Default: that of `x`, scale and bias together.
        param_dtype: type of scale and bias.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: how they start.
        axis_name: mesh or vmap axes to share statistics over; not used in `init`.
        axis_index_groups: the same as `axis_groups`; ignored without `axis_name`.
        use_fast_variance: accepted and without effect, the variance is always exact.
        force_float32_reductions: if True, running statistics are stored in at least
            float32, also where `variables` were cast to 16 bits; if False, in
            `param_dtype`. They are computed in at least float32 all the same.
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
    axis_groups: Sequence[Sequence[int]] | None = dataclasses.field(
        default=None, kw_only=True
    )
    activation: str | Callable[[Array], Array] | None = dataclasses.field(
        default=None, kw_only=True
    )
    save: Literal["input", "output", "recompute"] = dataclasses.field(
        default="input", kw_only=True
    )
    debias: bool = dataclasses.field(default=False, kw_only=True)
    unbiased: bool = dataclasses.field(default=False, kw_only=True)
    skip_nonfinite: bool = dataclasses.field(default=False, kw_only=True)
    update_statistics: bool = dataclasses.field(default=True, kw_only=True)
    frozen: bool | Literal["statistics"] = dataclasses.field(
        default=False, kw_only=True
    )
    implementation: str | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
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

        In `init` nothing is updated and nothing shared over `axis_name`, which need
        not be bound.

        Args:
            x: the input.
            use_running_average: normalize with the running statistics.
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
        self._check({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        modes = self.use_running_average, use_running_average
        inference = self._evaluates(nn.merge_param("use_running_average", *modes))
        x = self._input(x)
        features = self._features(x)
        start = self._start(features)
        shape = features if self.shared_affine else start.mean.shape
        self._has_own(scale, bias)
        read_as = None if self.force_float32_reductions else self.param_dtype
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
            scale = jnp.asarray(scale, read_as)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
            bias = jnp.asarray(bias, read_as)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            x = x.real
        stored = self._variables(start, x, inference=inference)
        wide = x.astype(jnp.promote_types(x.dtype, dtype))
        kind = x.dtype if self.dtype is None else self.dtype
        if self.force_float32_reductions or not jnp.issubdtype(kind, jnp.inexact):
            kind = jnp.promote_types(kind, jnp.float32)
        old = {k: _as_stored(k, v.value, kind) for k, v in stored.items()}
        state = self._as_state(old, wide)
        y, new = self._run(
            wide,
            state,
            scale,
            bias,
            evaluates=inference,
            initial=self.is_initializing(),
            mask=mask,
            weights=weights,
            residual=residual,
            **which,
        )
        if new is not None:
            for field, variable in stored.items():
                variable.value = getattr(new, field).astype(old[field].dtype)
        return y.astype(dtype)

    @nn.nowrap
    def _variables(
        self, start: Any, x: Array, *, inference: bool
    ) -> dict[str, nn.Variable]:
        """The running statistics by field; a count only where the update needs it.

        A checkpoint of Flax has none. Inference goes without; training must not start
        it at zero, since the first batch would then replace what Flax has averaged.
        """
        kind = jnp.float32 if self.force_float32_reductions else self.param_dtype
        names = self._names()
        if jnp.iscomplexobj(x):
            kind = jnp.promote_types(kind, x.dtype)
        mean, count = f"mean{self.suffix}", f"count{self.suffix}"
        known = self.has_variable("batch_stats", mean)
        if "count" in names and known and not self.has_variable("batch_stats", count):
            if not inference:
                raise ValueError(
                    f"`variables` must have a {count!r} beside {mean!r} in "
                    "'batch_stats' with `debias=True` or `momentum=None`, got none (a "
                    f"checkpoint of Flax?). Add an array of the shape of {mean!r} with "
                    "the number of batches that it averages."
                )
            del names["count"]

        def first(field):
            value = getattr(start, field)
            if field == "count":
                return value
            return value.astype(kind if field == "mean" else jnp.finfo(kind).dtype)

        return {
            field: self.variable("batch_stats", name, first, field)
            for field, name in names.items()
        }


def _as_stored(field: str, old: Array, kind: Dtype) -> Array:
    """`old` in the type that Flax stores after a batch with moments of type `kind`."""
    # In 16 bits a count would stop at 256.
    kind = jnp.promote_types(old.dtype, jnp.float32 if field == "count" else kind)
    return old.astype(kind if field == "mean" else jnp.finfo(kind).dtype)
