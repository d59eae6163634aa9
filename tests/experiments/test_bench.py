"""The benchmarks run, and what they claim of jaxbn holds."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn.deploy
from experiments import __main__ as command
from experiments import bench_fold, bench_memory


def test_accuracy_meets_its_bounds_and_writes_what_it_prints(tmp_path, capsys):
    assert command.main(["bench", "accuracy", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "accuracy.json").read_text())
    table = capsys.readouterr().out
    for name in ("jaxbn", "jaxbn, 8 replicas"):
        errors = record["errors"][name]
        assert errors[0] <= 5e-6
        assert max(errors) <= 1e-3
        assert f"| {name} | {errors[0]:.0e} |" in table
    assert record["environment"]["packages"]["jax"]


@pytest.mark.slow
def test_residuals_of_resnet_are_near_those_without_normalization():
    def kept(name):
        way = bench_memory.WAYS[name]
        model = bench_memory.ResNet50(way, jnp.bfloat16)
        loss, arguments = bench_memory.problem(model, way, jnp.bfloat16, 8)
        return bench_memory.residual_bytes(loss, arguments)

    none = kept("none")
    assert kept("jaxbn, activation and residual inside") < 1.1 * none
    assert kept('jaxbn, residuals="recompute"') < 0.8 * none
    leaky = kept("none, leaky ReLU")
    assert kept('jaxbn, leaky ReLU, residuals="output"') < 0.9 * leaky


def test_a_folded_net_gives_the_same_in_the_benchmark():
    model = bench_fold.resnet((1, 1))
    x = jnp.ones((1, 32, 32, 3)) * jnp.linspace(-1, 1, 32)[:, None]
    folded, report = jaxbn.deploy.fold_nnx(model, x)
    assert not report.kept and len(report.folded) == 9
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_batch_of_nothing_is_refused(tmp_path, capsys):
    assert command.main(["bench", "memory", "--batch", "0"]) == 2
    assert "`--batch` must be positive, got 0." in capsys.readouterr().err
