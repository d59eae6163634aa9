"""Behaviour of each kind of layer, shared by the linen and nnx modules.

Classes to inherit from: the modules of Flax add what is said about them in annotations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxbn.core import checks, layers, options, weighting
from jaxbn.core.batch_norm import batch_norm
from jaxbn.core.normalize import batch_norm_inference
from jaxbn.core.state import init_state, require_count
from jaxbn.core.types import BatchNormState
from jaxbn.variants import blend, domains, ghost, renorm, settings, timestep


class Hooks(settings.Settings):
    """Those that all kinds share."""

    suffix: Any = ""
    """Suffix of the names of the statistics."""
    has_moments: Any = True
    """True if mean and var are those of everything that the layer is called on."""
    shared_affine: Any = True
    """True if scale and bias have the shape of the features only."""
    always_counts: Any = False
    """True if the number of updates matters for more than the average."""
    trains_in_init: Any = False
    """True if `init` normalizes with the batch, and not with initial statistics."""
    statistics: Any = BatchNormState
    """The type of the running statistics."""
    fixed: Any = ()
    """The options that keep their default, since there is no such training."""
    rules: Any = layers.rules()
    """Functions that raise an error about an option, by its name."""

    def _check(self, given: dict[str, Any]) -> None:
        """Refuses options that are wrong for every input."""
        for name in filter(self.rules.get, given):
            self.rules[name](name, given[name])

    _input = staticmethod(layers.array)
    _has_own = layers.has_own
    _sizes = staticmethod(functools.partial(options.sizes, "num_features"))

    def _start(self, features: tuple[int, ...]) -> Any:
        """The statistics before the first batch."""
        return init_state(features)

    def _train(self, state: Any) -> Callable[..., tuple[Array, Any]]:
        return batch_norm

    def _evaluate(self, counting: dict[str, Any]) -> Callable[..., Array]:
        return batch_norm_inference

    def _training(self, *, initial: bool) -> dict[str, Any]:
        """The options of training; in `init` nothing is shared or stored."""
        found = {
            "axis_name": None if initial else self.axis_name,
            "axis_groups": None if initial else self._groups(),
            "save": self.save,
            "momentum": self.momentum,
            "debias": self.debias,
            "unbiased": self.unbiased and not initial,
            "skip_nonfinite": self.skip_nonfinite,
        }
        for name in self.fixed:
            if repr(value := found.pop(name)) not in ("None", "'input'"):
                raise ValueError(
                    f"`{name}` must be the default for {type(self).__name__}, got "
                    f"{value!r}. Leave it out."
                )
        return found

    def _names(self) -> dict[str, str]:
        """The names of the variables of the statistics, by those of their fields."""
        counts = self.always_counts or self._averages()
        fields = [k for k in self.statistics._fields if k != "count" or counts]
        return {field: field + self.suffix for field in fields}

    def _features(self, x: Array) -> tuple[int, ...]:
        """The sizes of the feature axes."""
        return tuple(x.shape[axis] for axis in checks.feature_axes(x, self.axis))

    def _as_state(self, stored: dict[str, Array], x: Array) -> Any:
        """The statistics, from what is stored of them, for `x` of this type."""
        mean = stored["mean"]
        # A complex mean may start as a real one.
        mean = mean.astype(jnp.promote_types(mean.dtype, x.dtype))
        count = jnp.zeros(mean.shape, jnp.float32)
        return self.statistics(**{"count": count, **stored, "mean": mean})

    def _run(
        self,
        x: Array,
        state: Any,
        scale: Array | None,
        bias: Array | None,
        *,
        evaluates: bool,
        initial: bool = False,
        mask: Array | None,
        weights: Array | None,
        **others: Any,
    ) -> tuple[Array, Any]:
        """The result and, after training, the new statistics."""
        counting = {"where": weighting.mask(mask, x, name="mask")}
        if weights is not None:
            counting["weights"] = weighting.counted(None, weights, x)
        if self._fixes_affine():
            scale, bias = lax.stop_gradient((scale, bias))
        others |= {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "implementation": self.implementation,
        }
        if evaluates or (initial and not self.trains_in_init):
            return self._evaluate(counting)(x, state, scale, bias, **others), None
        others |= self._training(initial=initial)
        if self._averages():
            require_count(state)
        y, new = self._train(state)(x, state, scale, bias, **counting, **others)
        return y, None if initial or not self.update_statistics else new


class Ordinary(Hooks):
    """Statistics of the batch."""

    trains_in_init = True


class Ghost(Hooks):
    """Statistics of groups of examples."""

    ghost_batch_size: Any
    update: Any
    fixed = ("axis_groups", "save")
    rules = layers.rules(
        ghost_batch_size=layers.group_size, update=layers.order_of_updates
    )

    def _train(self, state):
        sizes = {"ghost_batch_size": self.ghost_batch_size, "update": self.update}
        return functools.partial(ghost.ghost_batch_norm, **sizes)


class Renorm(Hooks):
    """Statistics corrected towards the running ones."""

    r_max: Any
    d_max: Any
    statistics, has_moments = renorm.RenormState, False
    always_counts = True  # the bounds follow a schedule
    fixed = ("save",)
    rules = layers.rules(r_max=layers.bound_or_schedule, d_max=layers.bound_or_schedule)

    def _start(self, features):
        return renorm.init_renorm_state(features)

    def _train(self, state):
        n, bounds = state.count.max(initial=0), dict(r_max=self.r_max, d_max=self.d_max)
        now = {k: v(n) if callable(v) else v for k, v in bounds.items()}
        return functools.partial(renorm.batch_renorm, **now)

    def _evaluate(self, counting):
        def evaluate(*arrays, epsilon, **others):  # which is in sigma already
            return renorm.batch_renorm_inference(*arrays, **others)

        return evaluate


class Timestep(Hooks):
    """Statistics for each time step."""

    max_steps: Any
    # Not "mean": there, tools for whole models expect the statistics of every call.
    suffix, has_moments = "_of_each", False
    rules = layers.rules(max_steps=layers.count(timestep.STEPS))

    def _start(self, features):
        return timestep.init_timestep_state(self.max_steps, features)

    def _train(self, state):
        return timestep.timestep_batch_norm

    def _evaluate(self, counting):
        return timestep.timestep_batch_norm_inference


class Domain(Hooks):
    """Statistics for each domain."""

    num_domains: Any
    suffix, has_moments, fixed = "_of_each", False, ("save",)
    rules = layers.rules(num_domains=layers.count(domains.DOMAINS))

    def _start(self, features):
        return domains.init_domain_state(self.num_domains, features)

    def _train(self, state):
        return domains.domain_batch_norm

    def _evaluate(self, counting):
        return domains.domain_batch_norm_inference


class EvalBlend(Hooks):
    """A share of each example's own statistics at evaluation."""

    rules = layers.rules(alpha=options.share)

    def _first_alpha(self, alpha: float | Array) -> Array:
        return jnp.asarray(alpha, jnp.float32)

    def _alpha(self) -> Array:
        raise NotImplementedError

    def _evaluate(self, counting):
        return functools.partial(blend.eval_blend, alpha=self._alpha(), **counting)
