"""Options at scale: names, limits, and how a run remembers them."""

import json
import re

import pytest

from experiments import __main__ as program
from experiments.common.errors import UserError
from experiments.common.options import parse
from experiments.scale.config import CONFIGS, ScaleConfig
from experiments.scale.options import (
    check,
    check_unchanged,
    fingerprint,
    flag,
    named,
    profiled_steps,
    stored,
    to_json,
)


def parsed(*words, base="cifar10-resnet20"):
    return parse(ScaleConfig, words, prog="p", default=CONFIGS[base])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_remembers_its_options(name, tmp_path):
    config = parsed("--seed=3", "--no-augment", "--out", str(tmp_path), base=name)
    check(config)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    found = stored(parsed("--out", str(tmp_path), "--keep=5"))
    assert to_json(found) == to_json(config)
    assert fingerprint(found) == fingerprint(config)
    check_unchanged(found, config)
    assert named(["--resume", "--out", str(tmp_path)]) == name
    assert named([f"--config={name}"]) == name
    assert named(["--steps", "3"]) is None


@pytest.mark.parametrize("words", [["--out", "{}"], ["--out={}"]])
def test_a_run_in_a_directory_with_a_space_is_recognised(words, tmp_path):
    out = tmp_path / "my dir" / "run --out x"
    out.mkdir(parents=True)
    (out / "config.json").write_text('{"config": "cifar10-resnet56"}')
    words = [word.format(out) for word in words]
    assert named([*words, "--resume"]) == "cifar10-resnet56"
    assert named(words) is None


def test_devices_and_habits_may_change_and_nothing_else(tmp_path):
    begun = parsed("--out", str(tmp_path))
    free = parsed("--parallel=shard_map", "--log-every=7", "--cpu-devices=4")
    check_unchanged(free, begun)
    with pytest.raises(UserError, match=r"`--bn-sync` must stay global"):
        check_unchanged(parsed("--bn-sync=ghost:4"), begun)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--steps=0"], "`--steps` must be at least 1, got 0"),
        (["--loader-threads=-1"], "`--loader-threads` must be at least 0, got -1"),
        (["--process-id=-1"], "`--process-id` must be at least 0, got -1"),
        (["--keep=1"], "`--keep` must be at least 2, got 1"),
        (["--lr=nan"], "`--lr` must be finite, got nan"),
        (["--momentum=1"], "`--momentum` must be below 1, got 1"),
        (["--profile=3"], "`--profile` must be START:COUNT"),
        (["--steps=4", "--profile=4:1"], "`--profile` must start before the 4 steps"),
        (["--config=alexnet"], "`--config` must be one of digits, cifar10-resnet20"),
        (["--model-devices=2", "--parallel=pmap"], "`--model-devices` must be 1"),
    ],
)
def test_messages(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(parsed(*words))


def test_profiled_steps_and_flags():
    assert profiled_steps("10:5") == range(10, 15)
    assert not profiled_steps(None)
    assert flag("bn_sync") == "--bn-sync"


def test_a_damaged_description_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"config": "cifar10-resnet20"}')
    with pytest.raises(UserError, match="must hold the options of a run"):
        stored(parsed("--out", str(tmp_path)))


def test_the_command_line_chooses_by_name(capsys):
    assert program.main(["train", "--config=vgg"]) == 2
    assert "`--config` must be one of" in capsys.readouterr().err
    assert program.main(["train", "--config=cifar10-resnet20", "--help"]) == 0
    assert "--bn-sync" in capsys.readouterr().out
