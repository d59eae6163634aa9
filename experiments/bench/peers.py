"""One layer by each library, as a function without arguments that runs it once.

All JAX libraries are compiled by `jax.jit`; state and gradients are among the results.
"""

import functools
import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.bench import pytorch
from experiments.bench.cases import EPSILON, MOMENTUM, Case
from experiments.bench.turns import Run
from experiments.nets.apart import finished


def builders(case: Case) -> dict[str, Callable]:
    """The libraries that take part in a case; those not installed are left out."""
    xla = functools.partial(_jaxbn, implementation="xla")
    found = {"jaxbn": _jaxbn, "xla": xla, "flax": flax}
    if pytorch.device():
        found["torch"] = pytorch.layer
    if case.everyone:
        others = {"nnx": _nnx, "haiku": _haiku, "equinox": _equinox, "keras": _keras}
        found |= {n: b for n, b in others.items() if n == "nnx" or installed(n)}
    return found


def runs(case: Case) -> dict[str, Run]:
    """The participants, measured in turns: a copy of x, and every library."""
    generator = np.random.default_rng(0)
    x, dy, added = (
        jnp.asarray(generator.standard_normal(case.shape, np.float32), case.dtype)
        for _ in range(3)
    )
    result = {"copy": copy(x)}
    for name, build in builders(case).items():
        result[name] = build(case, x, dy, added if "add" in case.activation else None)
    return result


def installed(name: str) -> bool:
    """Tells whether a library is there."""
    return importlib.util.find_spec(name) is not None


def copy(x: jax.Array) -> Run:
    """A copy where x is; on a CPU by all threads between two arrays that exist."""
    if jax.default_backend() != "cpu":
        copied = jax.jit(jnp.copy)
        return Run(lambda: copied(x))
    if installed("torch"):
        import torch

        source = torch.from_numpy(np.array(x).view(np.uint8).reshape(-1))
        target = torch.empty_like(source)
        return Run(lambda: target.copy_(source))
    target = np.empty_like(values := np.array(x).view(np.uint8))
    return Run(lambda: np.copyto(target, values))


def _compiled(case: Case, forward, params, x, dy, added) -> Run:
    """`forward(params, x, added) -> (y, new state)`, and its gradients where asked."""

    def both(params, x, added, dy):
        y, pull, new = jax.vjp(forward, params, x, added, has_aux=True)
        return y, new, pull(dy)

    if case.operation == "forward+backward":
        function, arguments = jax.jit(both), (params, x, added, dy)
    else:
        function, arguments = jax.jit(forward), (params, x, added)
    program = function.lower(*arguments).compile()
    return Run(lambda: program(*arguments), program)


def _finish(y, case: Case, added):
    return finished(y, None if case.activation == "none" else "relu", added)


def _jaxbn(case: Case, x, dy, added, implementation=None) -> Run:
    state = jaxbn.init_state(case.shape[-1])
    options = {
        "activation": None if case.activation == "none" else "relu",
        "implementation": implementation,
        "epsilon": EPSILON,
    }

    def forward(params, x, added):
        if case.operation == "inference":
            options_ = options | {"residual": added}
            return jaxbn.batch_norm_inference(x, state, *params, **options_), state
        return jaxbn.batch_norm(x, state, *params, residual=added, **options)

    return _compiled(case, forward, _params(case), x, dy, added)


def _params(case: Case) -> tuple[jax.Array, jax.Array]:
    return jnp.ones(case.shape[-1]), jnp.zeros(case.shape[-1])


def flax(case: Case, x, dy, added, **options) -> Run:
    """The layer of flax.linen."""
    from flax import linen as nn

    layer = nn.BatchNorm(
        use_running_average=case.operation == "inference",
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=x.dtype,
        **options,
    )
    variables = layer.init(jax.random.key(0), x[:1])

    def forward(params, x, added):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, new = layer.apply(given, x, mutable="batch_stats")
        return _finish(y, case, added), new

    return _compiled(case, forward, variables["params"], x, dy, added)


def _nnx(case: Case, x, dy, added) -> Run:
    from flax import nnx

    layer = nnx.BatchNorm(
        case.shape[-1],
        use_running_average=case.operation == "inference",
        epsilon=EPSILON,
        dtype=x.dtype,
        rngs=nnx.Rngs(0),
    )
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def forward(params, x, added):
        model = nnx.merge(graph, params, rest, copy=True)
        y = model(x)
        return _finish(y, case, added), nnx.state(model, nnx.BatchStat)

    return _compiled(case, forward, params, x, dy, added)


def _haiku(case: Case, x, dy, added) -> Run:
    import haiku as hk

    def layer(x, training):
        norm = hk.BatchNorm(True, True, MOMENTUM, eps=EPSILON)
        return norm(x, is_training=training)

    model = hk.without_apply_rng(hk.transform_with_state(layer))
    params, state = model.init(jax.random.key(0), x, True)

    def forward(params, x, added):
        y, new = model.apply(params, state, x, case.operation != "inference")
        return _finish(y, case, added), new

    return _compiled(case, forward, params, x, dy, added)


def _equinox(case: Case, x, dy, added) -> Run:
    """Features first in every example, as equinox wants them."""
    import equinox as eqx

    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        case.shape[-1], "batch", eps=EPSILON, mode="batch", momentum=MOMENTUM
    )
    if case.operation == "inference":
        layer = eqx.nn.inference_mode(layer)
    params, static = eqx.partition(layer, eqx.is_inexact_array)
    x, dy, added = (
        array if array is None else jnp.moveaxis(array, -1, 1).copy()
        for array in (x, dy, added)
    )

    def forward(params, x, added):
        model = eqx.combine(params, static)
        run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, new = run(x, state)
        return _finish(y.astype(x.dtype), case, added), new

    return _compiled(case, forward, params, x, dy, added)


def _keras(case: Case, x, dy, added) -> Run:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    layer = keras.layers.BatchNormalization(
        epsilon=EPSILON, momentum=MOMENTUM, dtype=case.dtype
    )
    layer.build(case.shape)
    params = [v.value for v in layer.trainable_variables]
    state = [v.value for v in layer.non_trainable_variables]

    def forward(params, x, added):
        training = case.operation != "inference"
        y, new, *_ = layer.stateless_call(params, state, x, training=training)
        return _finish(y, case, added), new

    return _compiled(case, forward, params, x, dy, added)
