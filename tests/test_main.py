"""python -m jaxbn prints what a bug report needs."""

import jax

import jaxbn
from jaxbn import __main__ as command


def test_the_report_names_versions_devices_and_implementations():
    lines = command.report().splitlines()
    assert lines[0].startswith(f"jaxbn {jaxbn.__version__}, Python ")
    assert f"jax {jax.__version__}" in lines[1]
    assert lines[2].startswith(f"{jax.device_count()} x ")
    assert "xla: available" in lines
