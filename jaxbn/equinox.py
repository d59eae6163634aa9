"""Batch normalization as an Equinox layer; the mathematics is `jaxbn.batch_norm`.

Drop-in for `equinox.nn.BatchNorm`: the same call, inside the same `jax.vmap` with a
named axis. It needs the package `equinox`.

    >>> import equinox as eqx
    >>> make = eqx.nn.make_with_state(jaxbn.equinox.BatchNorm)
    >>> layer, state = make(2, axis_name="batch")
    >>> run = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    >>> y, state = run(jnp.array([[1.0, 5.0], [3.0, 9.0]]), state)
    >>> y.round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> state.get(layer.statistics).mean
    Array([2., 7.], dtype=float32)
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

import jaxbn
from jaxbn.variants import hooks

__all__ = ["BatchNorm"]


class BatchNorm(eqx.nn.StatefulLayer):
    """Batch normalization of one example inside of a mapped batch.

    Unlike in Equinox: training normalizes with the batch and evaluation with averages
    that are those of the batches from the first one on, as in no mode of
    `equinox.nn.BatchNorm`; masked and weighted values count right; statistics are kept
    in float32 and are right in bfloat16 and for large means.

    Attributes:
        weight, bias: scale and shift of each channel, shape (input_size,), or None.
        statistics: the `equinox.nn.StateIndex` of the `jaxbn.BatchNormState`.
        inference: whether to normalize with the running statistics; switched by
            `equinox.nn.inference_mode`.
    """

    weight: Array | None
    bias: Array | None
    statistics: eqx.nn.StateIndex
    inference: bool
    axis_name: Any = eqx.field(static=True)
    input_size: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    channelwise_affine: bool = eqx.field(static=True)
    momentum: float | None = eqx.field(static=True)
    options: Any = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        axis_name: Any,
        eps: float = 1e-5,
        channelwise_affine: bool = True,  # noqa: FBT001, FBT002 (as in Equinox)
        momentum: float | None = 0.99,
        inference: bool = False,  # noqa: FBT001, FBT002
        dtype: DTypeLike = jnp.float32,
        *,
        activation: str | None = None,
        debias: bool = True,
        unbiased: bool = False,
        skip_nonfinite: bool = False,
        implementation: str | None = None,
    ):
        """Creates the layer; use `equinox.nn.make_with_state`.

        Args:
            input_size: number of channels.
            axis_name: the name of the axis of `jax.vmap`, or several names.
            eps: added to the variance.
            channelwise_affine: whether there are a weight and a bias.
            momentum: weight of the old running value; None averages all batches.
            inference: whether to start with running statistics.
            dtype: of weight and bias. The statistics are float32.
            activation: applied in the layer, see `jaxbn.batch_norm`.
            debias, unbiased, skip_nonfinite: see `jaxbn.update`.
            implementation: "xla", "native", or None for the fastest that is right.

        Raises:
            TypeError, ValueError: if an argument is of another type or out of range.
        """
        for name, rule, value in (
            ("input_size", "num_features", input_size),
            ("axis_name", "axis_name", axis_name),
            ("eps", "epsilon", eps),
            ("channelwise_affine", "use_scale", channelwise_affine),
            ("momentum", "momentum", momentum),
            ("inference", "use_running_average", inference),
            ("dtype", "param_dtype", dtype),
            ("activation", "activation", activation),
            ("debias", "debias", debias),
            ("unbiased", "unbiased", unbiased),
            ("skip_nonfinite", "skip_nonfinite", skip_nonfinite),
            ("implementation", "implementation", implementation),
        ):
            hooks.Ordinary.rules[rule](name, value)
        shape = (input_size,) if channelwise_affine else None
        self.weight = None if shape is None else jnp.ones(shape, dtype)
        self.bias = None if shape is None else jnp.zeros(shape, dtype)
        self.statistics = eqx.nn.StateIndex(jaxbn.init_state(input_size))
        self.inference, self.axis_name = inference, axis_name
        self.input_size, self.eps, self.momentum = input_size, eps, momentum
        self.channelwise_affine = channelwise_affine
        averages = {"debias": debias, "unbiased": unbiased}
        averages["skip_nonfinite"] = skip_nonfinite
        both = {"activation": activation, "implementation": implementation}
        self.options = (tuple(averages.items()), tuple(both.items()))

    @jax.named_scope("jaxbn.equinox.BatchNorm")
    def __call__(
        self,
        x: Array,
        state: eqx.nn.State,
        *,
        key: Any = None,
        inference: bool | None = None,
        where: Array | None = None,
        weights: Array | None = None,
        residual: Array | None = None,
    ) -> tuple[Array, eqx.nn.State]:
        """Normalizes one example, and updates the running statistics in training.

        Args:
            x: shape (input_size, ...), one example of the mapped batch.
            state: from `equinox.nn.make_with_state`, or the last call.
            key: not used; for `equinox.nn.Sequential`.
            inference: in place of the attribute.
            where, weights, residual: of this example, see `jaxbn.batch_norm`.

        Returns:
            y, with the shape and type of `x`, and the state for the next call.

        Raises:
            TypeError, ValueError: as `jaxbn.batch_norm`, for one without `axis_name`.
        """
        del key
        hooks.Ordinary.rules["use_running_average"]("inference", inference)
        averages, both = map(dict, self.options)
        arrays = (x, state.get(self.statistics), self.weight, self.bias)
        by = {"axis": 0, "epsilon": self.eps, "residual": residual, **both}
        if self.inference if inference is None else inference:
            return jaxbn.batch_norm_inference(*arrays, **by), state
        y, new = jaxbn.batch_norm(
            *arrays,
            axis_name=self.axis_name,
            where=where,
            weights=weights,
            momentum=self.momentum,
            **averages,
            **by,
        )
        return y, state.set(self.statistics, new)
