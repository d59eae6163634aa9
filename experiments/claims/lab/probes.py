"""Measurements inside a net, while it trains or before."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from scipy import stats

from experiments.claims.lab.engine import cross_entropy
from experiments.claims.lab.nets import ACTIVATIONS
from experiments.claims.lab.norms import Norm
from experiments.claims.lab.plan import Context, Model, View


def percentiles(model: Model, view: View) -> dict[str, Array]:
    """Returns the spread of the last hidden unit's input over the validation rows."""
    taps = _taps(model, view)
    found = jnp.percentile(taps[-1][:, 0], jnp.array([15, 50, 85]))
    return {"p15": found[0], "p50": found[1], "p85": found[2]}


def dead_units(model: Model, view: View) -> dict[str, Array]:
    """Returns the share of units that are zero on all validation rows."""
    taps = _taps(model, view)
    return {"dead": jnp.mean(jnp.stack([(tap <= 0).all(0) for tap in taps]))}


def distributions(model: Model, view: View) -> dict[str, Array]:
    """Returns the last activation's inputs, and how the first gradient shifts.

    The first layer's gradient is compared with what it would be after the other layers
    have taken their step, on the same batch (Santurkar et al., 2018, definition 2.1).
    """

    def loss(params):
        logits, _, taps = view.net.apply(
            params, model.state, view.inputs[view.batch], view.context
        )
        return cross_entropy(logits, view.labels[view.batch]), taps[-1]

    gradient, last = jax.grad(loss, has_aux=True)(model.params)
    step = jax.tree.map(lambda g: view.context.hyper["lr"] * g, gradient)
    moved = jax.tree.map(lambda p, s: p - s, model.params, step)
    # All layers but the first have moved; the first is where it was.
    moved["dense"] = [model.params["dense"][0], *moved["dense"][1:]]
    again = jax.grad(loss, has_aux=True)(moved)[0]
    before, after = gradient["dense"][0], again["dense"][0]
    size = jnp.linalg.norm(before) + 1e-12
    shown = _taps(model, view)[-1]
    standard = (last - last.mean(0)) / (last.std(0) + 1e-8)
    return {
        "inputs": last[:, :16],
        "shown": shown[:, :16],
        "normalized": standard.reshape(-1),
        "gradient_shift": jnp.linalg.norm(after - before) / size,
    }


def _taps(model: Model, view: View) -> list[Array]:
    """The inputs of all activations for the validation rows."""
    rows = view.inputs[view.validation]
    context = view.context._replace(train=False)
    return view.net.apply(model.params, model.state, rows, context)[2]


def looks_normal(inputs: np.ndarray) -> np.ndarray:
    """Returns the share of units whose inputs may be normal, (starts, cells, evals)."""
    safe = np.nan_to_num(inputs + 1e-9 * np.arange(inputs.shape[-2])[:, None])
    with warnings.catch_warnings():  # about units that are constant, so not normal
        warnings.simplefilter("ignore", RuntimeWarning)
        return (stats.normaltest(safe, axis=-2).pvalue > 0.05).mean(-1)


def smoothness(model: Model, view: View, *, distances: np.ndarray) -> dict[str, Array]:
    """Returns how the loss and the gradient change along the gradient.

    `smoothness` is the largest change of the gradient over the distance, `scale_free`
    the same times the squared norm of the weights (Santurkar et al., 2018, figure 4).
    """

    def loss(params):
        rows = view.inputs[view.batch]
        logits = view.net.apply(params, model.state, rows, view.context)[0]
        return cross_entropy(logits, view.labels[view.batch])

    here = jax.grad(loss)(model.params)
    size = optax.global_norm(here)

    def at(distance):
        there = jax.tree.map(lambda p, g: p - distance * g, model.params, here)
        value, gradient = jax.value_and_grad(loss)(there)
        change = optax.global_norm(jax.tree.map(jnp.subtract, gradient, here))
        return value, change / (distance * size)

    values, ratios = jax.lax.map(at, jnp.asarray(distances, jnp.float32))
    weights = optax.global_norm(model.params["dense"])
    return {
        "smoothness": ratios.max(),
        "scale_free": ratios.max() * weights**2,
        "loss_range": values.max() - values.min(),
    }


def gradient_norms(
    norm: Norm,
    key: Array,
    *,
    width: int,
    layers: int,
    activation: str = "relu",
    gain: float | Array = 1.0,
) -> Array:
    """Returns the gradient norm at the input of every activation, (layers,).

    For a random linear loss of 512 Gaussian examples and He weights times `gain`.
    """
    keys = jax.random.split(key, layers + 2)
    x = jax.random.normal(keys[0], (512, width))
    params, state = norm.init(width, {})
    context = Context(True, key, {})

    def loss(offsets):
        h = x
        for n in range(layers):
            w = (
                gain
                * jax.random.normal(keys[n + 1], (width, width))
                * (2 / width) ** 0.5
            )
            h = norm.apply(params, state, h @ w + offsets[n], context)[0]
            h = ACTIVATIONS[activation](h)
        return jnp.vdot(h, jax.random.normal(keys[-1], h.shape))

    gradient = jax.grad(loss)(jnp.zeros((layers, 512, width)))
    return jnp.sqrt(jnp.sum(jnp.square(gradient), (1, 2)))


def sizes(model: Model, view: View) -> dict[str, Array]:
    """Returns how large what the activations see is, in every layer, in inference.

    `size` is log10 of the root mean square of each layer, `positive` the share of
    values above zero, `singular` log10 of the median singular value of the Jacobian
    from the inputs to the last layer, mean over 8 examples.
    """

    def last(x):
        context = view.context._replace(train=False)
        return view.net.apply(model.params, model.state, x[None], context)[2][-1][0]

    taps = jnp.stack(_taps(model, view))
    jacobians = jax.vmap(jax.jacrev(last))(view.inputs[view.validation[:8]])
    values = jnp.median(jnp.linalg.svd(jacobians, compute_uv=False), -1)
    return {
        "size": _log10(jnp.sqrt(jnp.mean(jnp.square(taps), (1, 2)))),
        "positive": jnp.mean(taps > 0, (1, 2)),
        "singular": _log10(values).mean(),
    }


def _log10(x: Array) -> Array:
    return jnp.log10(jnp.maximum(x, 1e-30))


def effective_rank(h: Array) -> Array:
    """Returns exp of the entropy of the singular values' shares (Roy, 2007)."""
    values = jnp.linalg.svd(h, compute_uv=False)
    share = values / values.sum()
    return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))


def gap(h: Array) -> Array:
    """Returns how far the examples are from orthogonal and equally long.

    The orthogonality gap of Daneshmand et al., 2021, of the rows of `h`.
    """
    gram = h @ h.T
    return jnp.linalg.norm(gram / jnp.trace(gram) - jnp.eye(len(h)) / len(h))
