"""What folding a linen model leaves as it is, and what it refuses."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_nets import draw
from random_nets import randomized_linen as randomized

import jaxbn.linen
from jaxbn.deploy import fold_linen, strip_linen


def test_only_affine_maps_that_are_stored_are_folded():
    class Rectified(nn.BatchNorm):
        def __call__(self, x):
            return nn.relu(super().__call__(x))

    class Stay(nn.Module):
        @nn.compact
        def __call__(self, x):
            local = {"use_running_average": False, "update_statistics": False}
            plain = {"use_running_average": True, "use_bias": False}
            ours, use = jaxbn.linen, {"use_running_average": True}
            d = [nn.Dense(3)(x) for _ in range(5)]
            return (
                ours.BatchNorm(**local, name="local")(d[0])
                + ours.EvalBlendBatchNorm(**use, alpha=0.5, name="blend")(d[1])
                + ours.DomainBatchNorm(num_domains=2, **use, name="domain")(
                    d[2], domain=1
                )
                + ours.BatchNorm(**plain, name="given")(d[3], bias=x)
                + Rectified(**use, name="more")(d[4])
            )

    x = draw(4, 3)
    variables = randomized(Stay(), x)
    same, report = fold_linen(Stay(), variables, x)
    assert report == (
        {},
        {
            "local": "it normalizes with the statistics of the batch",
            "blend": "its class is EvalBlendBatchNorm, not BatchNorm itself",
            "domain": "its class is DomainBatchNorm, not BatchNorm itself",
            "given": "it is called with bias",
            "more": "its class Rectified has another __call__",
        },
        0.0,
    )
    jax.tree.map(np.testing.assert_array_equal, same, variables)


class Pair(nn.Module):
    """A dense layer and a batch normalization, before what `end` does."""

    end: Any = staticmethod(lambda y, h: y)
    activation: Any = None

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(3, name="dense")(x)
        norm = jaxbn.linen.BatchNorm(True, activation=self.activation, name="norm")
        return self.end(norm(h), h)


@pytest.mark.parametrize(
    "end",
    [
        lambda y, h: (1e6 * jnp.tanh(y.sum()), y + h),
        lambda y, h: 1j * (y + h),
        lambda y, h: 1e-6 * (y + h),
        lambda y, h: (y, jnp.where(h > 0, -jnp.inf, 0), y + h),
    ],
    ids=["large beside", "complex", "tiny", "infinite"],
)
def test_each_output_is_compared_on_its_own_scale(end):
    x = draw(4, 3)
    _, report = fold_linen(Pair(end), randomized(Pair(end), x), x)
    assert "used elsewhere" in report.kept["norm"]


def test_outputs_that_are_no_numbers_are_named():
    net, x = Pair(lambda y, h: (y, jnp.log(-(y**2)))), draw(4, 3)
    _, report = fold_linen(net, randomized(net, x), x)
    assert "an output is not a number" in report.kept["norm"]


def test_rounding_of_means_far_from_zero_is_told_from_a_second_use():
    x = draw(16, 3)
    variables = randomized(Pair(), x)
    variables["params"]["dense"]["bias"] = np.full(3, 1e4, np.float32)
    variables["batch_stats"]["norm"]["mean"] = np.full(3, 1e4, np.float32)
    _, report = fold_linen(Pair(), variables, x)
    assert "likely rounding to float32" in report.kept["norm"]


def test_an_example_that_cannot_tell_is_refused():
    x = draw(4, 3)
    variables = randomized(Pair(), x)
    for hidden in (0 * x, x[:0], None):
        with pytest.raises(ValueError, match="`example` must have a value that is not"):
            fold_linen(Pair(), variables, hidden)
    for end in (lambda y, h: 0 * y, lambda y, h: y.argmax(-1)):
        with pytest.raises(ValueError, match="`call` must return floating point"):
            fold_linen(Pair(end), variables, x)
    with pytest.raises(ValueError, match="`variables` must have the collections"):
        fold_linen(Pair(), variables["params"], x)


def test_what_stripping_would_lose_is_refused():
    x = draw(4, 3)
    net, variables = Pair(), randomized(Pair(), x)
    folded, report = fold_linen(net, variables, x)
    assert strip_linen(folded, report).keys() == {"params"}
    for wrong in (variables, {}):
        with pytest.raises(ValueError, match="`variables` must be those that `report`"):
            strip_linen(wrong, report)
    net = Pair(activation="relu")
    folded, report = fold_linen(net, variables, x)
    assert report.folded == {"norm": ("dense", "after", True)}
    with pytest.raises(ValueError, match=r"`report` must have no layers with an act"):
        strip_linen(folded, report)


def test_a_layer_that_stands_in_is_the_one_folded():
    x, net = draw(4, 3), nn.Sequential([nn.Dense(3), nn.BatchNorm(True)])

    def rectified(model, x):
        with jaxbn.linen.converting(activation="relu"):
            return model(x)

    _, report = fold_linen(net, randomized(net, x), x, call=rectified)
    assert report.folded == {"layers_1": ("layers_0", "after", True)}
