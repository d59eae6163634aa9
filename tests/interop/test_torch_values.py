"""What of PyTorch a Flax model cannot hold, and what is no model, is refused."""

import numpy as np
import pytest
from extras import needs
from flax import nnx

from jaxbn.interop import from_torch

torch = needs("torch")

DENSE = {"params": {"Dense": {"kernel": np.zeros((2, 3), np.float16)}}}


def norm():
    return nnx.LayerNorm(2, rngs=nnx.Rngs(0))


REFUSED = {
    "an embedding": (
        lambda: {"source": torch.nn.Sequential(torch.nn.Embedding(3, 2)),
                   "into": DENSE},
        r"got \[\] for \['Dense'\]",
    ),
    "another epsilon of a LayerNorm": (
        lambda: {"source": torch.nn.LayerNorm(2),
                   "into": norm()},
        "`into` must have epsilon=1e-05 at '' like '', got 1e-06",
    ),
    "another epsilon of that of a dictionary": (
        lambda: {"source": torch.nn.LayerNorm(2).state_dict(), "epsilon": 1e-3,
                   "into": norm()},
        "`into` must have epsilon=0.001 at '' like '', got 1e-06",
    ),
    "a complex weight": (
        lambda: {"source": {"a.weight": np.full((3, 2), 1 + 2j)}, "into": DENSE},
        r"`into` .* holds the kernel of 'Dense', got float16 for \(1\+2j\)\. Make",
    ),
    "a large weight": (
        lambda: {"source": {"a.weight": np.full((3, 2), 1e6)}, "into": DENSE},
        "`into` .* holds the kernel of 'Dense', got float16 for 1000000.0",
    ),
    "a weight that is not finite": (
        lambda: {"source": {"weight": np.full((3, 2), np.nan)}, "into": DENSE},
        r"`source\['weight'\]` must be finite, got nan in 6 of 6 places",
    ),
    "a nested dictionary": (
        lambda: {"source": {"epoch": 3, "net": {}}, "into": DENSE},
        r"got a dictionary at 'net' .*Pass .* `source\['net'\]`",
    ),
    "names that are numbers": (
        lambda: {"source": {0: np.ones(2)}, "into": DENSE},
        "`source` must have names as keys, got 0",
    ),
    "params alone": (
        lambda: {"source": {}, "into": DENSE["params"]},
        r"`into` must have the collections .* got \['Dense'\]\. Pass all",
    ),
    "the state of a model": (
        lambda: {"source": {}, "into": nnx.state(norm())},
        r"`into` must have the collections .* got \['bias', 'scale'\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        from_torch(**make())


def test_values_may_be_of_other_types_that_hold_them():
    for kind in (np.int8, np.float64, np.complex64):
        weight = np.arange(6, dtype=kind).reshape(3, 2)
        found = from_torch({"weight": weight}, into=DENSE)
        kernel = found.model["params"]["Dense"]["kernel"]
        assert kernel.dtype == np.float16
        np.testing.assert_array_equal(kernel, weight.real.T)
