"""The benchmarks run, and what they claim of jaxbn holds."""

import json

from experiments import __main__ as command


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


def test_a_batch_of_nothing_is_refused(tmp_path, capsys):
    assert command.main(["bench", "memory", "--batch", "0"]) == 2
    assert "`--batch` must be positive, got 0." in capsys.readouterr().err
