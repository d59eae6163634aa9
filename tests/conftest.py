"""Eight CPU devices, strict promotion in the core, a quick hypothesis."""

import os

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile(
    "quick",
    deadline=None,
    max_examples=int(os.environ.get("JAXBN_EXAMPLES", "8")),
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """The core must never rely on an implicit broadcast or a mixture of types."""
    if request.path.parent.name not in ("core", "backends"):
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
