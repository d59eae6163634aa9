"""Normalizations as pairs of functions, all of jaxbn and Flax.

Each works on (batch, ..., features).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

import jaxbn
from experiments.claims.lab.plan import Context
from jaxbn.variants.ghost import ghost_batch_norm
from jaxbn.variants.renorm import (
    batch_renorm,
    batch_renorm_inference,
    init_renorm_state,
)

MOMENTUM = 0.9
_GROUPS = 4


class Norm(NamedTuple):
    """A normalization.

    Attributes:
        init: `init(features, hyper)` returns parameters and state.
        apply: `apply(params, state, x, context)` returns y and the new state.
    """

    init: Callable[[int, Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, Array, Context], tuple[Array, Any]]


def none() -> Norm:
    """A bias and nothing else."""

    def init(features, hyper):
        return {"bias": jnp.zeros(features)}, ()

    def apply(params, state, x, context):
        return x + params["bias"], state

    return Norm(init, apply)


def batch(
    *,
    ghost: int | None = None,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    momentum: float = MOMENTUM,
    debias: bool = True,
) -> Norm:
    """Batch normalization of jaxbn; the cell's "scale" is where gamma starts.

    Args:
        ghost: size of the groups that share statistics. Default: the whole batch.
        epsilon, momentum, debias: as in `jaxbn.batch_norm`.
        scale, bias: whether to learn gamma and beta.
    """

    def init(features, hyper):
        params = {"scale": jnp.full(features, hyper.get("scale", 1.0))} if scale else {}
        params |= {"bias": jnp.zeros(features)} if bias else {}
        return params, jaxbn.init_state(features)

    def apply(params, state, x, context):
        arrays = x, state, params.get("scale"), params.get("bias")
        if not context.train:
            return jaxbn.batch_norm_inference(*arrays, epsilon=epsilon), state
        options: dict[str, Any] = {
            "momentum": momentum,
            "epsilon": epsilon,
            "debias": debias,
        }
        if ghost:
            return ghost_batch_norm(*arrays, ghost_batch_size=ghost, **options)
        return jaxbn.batch_norm(*arrays, **options)

    return Norm(init, apply)


def renorm(*, r_max: float = 3.0, d_max: float = 5.0) -> Norm:
    """Batch renormalization of jaxbn with constant bounds."""

    def init(features, hyper):
        ones = {"scale": jnp.ones(features), "bias": jnp.zeros(features)}
        return ones, init_renorm_state(features)

    def apply(params, state, x, context):
        arrays = x, state, params["scale"], params["bias"]
        if not context.train:
            return batch_renorm_inference(*arrays), state
        how = {"momentum": MOMENTUM, "debias": False}  # as in the paper
        return batch_renorm(*arrays, r_max=r_max, d_max=d_max, **how)

    return Norm(init, apply)


def layer() -> Norm:
    """Flax's layer normalization over all but the batch axis."""
    return _flax(lambda x: nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim))))


def group(groups: int = _GROUPS) -> Norm:
    """Flax's group normalization."""
    return _flax(lambda x: nn.GroupNorm(num_groups=groups))


def instance() -> Norm:
    """Flax's instance normalization."""
    return _flax(lambda x: nn.InstanceNorm())


def composed(
    statistics: Callable[[Array, Context], tuple[Array, Array]],
    *,
    epsilon: float = 1e-5,
) -> Norm:
    """Batch normalization with other statistics: any mean and variance per feature.

    Evaluation uses their de-biased running average, as `batch` does.

    Args:
        statistics: `statistics(x, context)` returns mean and variance, (features,).
        epsilon: as in `jaxbn.normalize`.
    """

    def init(features, hyper):
        ones = {"scale": jnp.ones(features), "bias": jnp.zeros(features)}
        return ones, jaxbn.init_state(features)

    def apply(params, state, x, context):
        affine = params["scale"], params["bias"]
        if not context.train:
            return jaxbn.batch_norm_inference(x, state, *affine, epsilon=epsilon), state
        mean, var = statistics(x, context)
        one = jaxbn.Moments(jnp.ones_like(mean), mean, var)
        state = jaxbn.update(state, one, momentum=MOMENTUM)
        return jaxbn.normalize(x, mean, var, *affine, epsilon=epsilon), state

    return Norm(init, apply)


def noisy(strength: float = 0.5) -> Norm:
    """Batch normalization whose output has a random mean and spread at every step.

    The noise of Santurkar et al., 2018, section 2.1: each example and feature is
    scaled and shifted by a Gaussian whose own mean and spread are drawn per feature
    anew at every step. Evaluation is without noise.
    """
    norm = batch()

    def apply(params, state, x, context):
        y, state = norm.apply(params, state, x, context)
        if not context.train:
            return y, state
        keys = jax.random.split(context.key, 6)
        shift = _moving_gaussian(keys[:3], x, strength)
        gain = 1 + _moving_gaussian(keys[3:], x, strength)
        return y * gain + shift, state

    return Norm(norm.init, apply)


def _moving_gaussian(keys: Array, x: Array, strength: float) -> Array:
    features = x.shape[-1]
    mean = strength * jax.random.uniform(keys[0], (features,), minval=-1.0)
    spread = strength * jax.random.uniform(keys[1], (features,))
    return mean + spread * jax.random.normal(keys[2], x.shape)


def _flax(make: Callable[[Array], nn.Module]) -> Norm:
    def init(features, hyper):
        return {"scale": jnp.ones(features), "bias": jnp.zeros(features)}, ()

    def apply(params, state, x, context):
        y: Any = make(x).apply({"params": params}, x)
        return y, state

    return Norm(init, apply)


NORMS: dict[str, Callable[[], Norm]] = {
    "none": none,
    "bn": batch,
    "gn": group,
    "ln": layer,
    "in": instance,
    "renorm": renorm,
    "noisy": noisy,
}
