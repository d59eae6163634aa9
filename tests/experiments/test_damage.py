"""Files of runs that are damaged at random: told in a line, and nothing else differs.

A run goes on from its damaged directory to the same results, says in a note what it has
left out, or refuses in one line. A failure prints the seed; `JAXBN_DAMAGED=200` tries
that many for each program.
"""

import json
import os
import random
import re
import shlex
import shutil

import pytest
from train_runs import run_train, use_small_net

from experiments.__main__ import main
from experiments.digits import run, train
from experiments.scale import preemption

pytestmark = pytest.mark.slow  # each goes on with a run

VARIANTS = int(os.environ.get("JAXBN_DAMAGED", "4"))
JUNK = [b"5", b"{}", b"[]", b"null", b"\xff\xfe", b'{"a":' * 5000, b'"x"', b"{}\n"]
VALUES = [b"null", b"1e999", b'"x"', b"[]", b"true", b"-3", b"12345678901234567890123"]


def flipped(content, chance):
    place = chance.randrange(len(content))
    bit = 1 << chance.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def cut(content, chance):
    return content[: chance.randrange(len(content))]


def without_a_line(content, chance):
    lines = content.split(b"\n")
    del lines[chance.randrange(len(lines))]
    return b"\n".join(lines)


def with_another_value(content, chance):
    values = list(re.finditer(rb'(?<=: )[-\d.e"\w]+', content))
    if not values:
        return chance.choice(JUNK)
    one = chance.choice(values)
    return content[: one.start()] + chance.choice(VALUES) + content[one.end() :]


def junk(content, chance):
    return chance.choice(JUNK)


def gone(content, chance):
    return None


HOW = [flipped, flipped, cut, without_a_line, with_another_value, junk, gone]


def damage(out, chance):
    """Damages one file; those of text, which are read as such, half of the time."""
    found = [p for p in sorted(out.rglob("*")) if p.is_file() and p.stat().st_size]
    text = [p for p in found if p.suffix in (".json", ".jsonl", ".csv")]
    path, how = chance.choice(chance.choice([found, text])), chance.choice(HOW)
    content = how(path.read_bytes(), chance)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{path.relative_to(out)} {how.__name__}"


def without_times(path):
    rows = map(json.loads, path.read_text().splitlines())
    return [row | {"seconds": 0} for row in rows]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run that was stopped in the middle, and how it ends."""
    top = tmp_path_factory.mktemp("digits")
    words = ["--steps", "6", "--eval-every", "2", "--starts", "2", "--batch-size", "8"]

    with pytest.MonkeyPatch.context() as patch:
        use_small_net(patch)
        patch.setattr(run, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
        assert run_train("--out", top / "whole", *words) == 0
        with patch.context() as once:
            once.setattr(train.Interrupt, "due", lambda self, step: step == 4)
            assert run_train("--out", top / "half", *words) == 130
        yield top, lambda out: without_times(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    top = tmp_path_factory.mktemp("scale")
    words = shlex.split(
        "--config cifar10-resnet20 --source fake --depth 8 --image-size 8 --batch-size "
        "16 --fake-train-examples 64 --fake-eval-examples 20 --steps 6 --log-every 1 "
        "--checkpoint-every 2 --eval-every 4"
    )
    assert run_train("--out", top / "whole", *words) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preemption.Preemption, "due", lambda self, step: step == 5)
        assert run_train("--out", top / "half", *words) == 130
    names = ("metrics.jsonl", "summary.json")
    return top, lambda out: [(out / name).read_text() for name in names]


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    top = tmp_path_factory.mktemp("claims")
    words = ["run", "definitions", "--preset", "smoke", "--jobs", "1", "--out"]
    assert main([*words, str(top / "whole")]) == 0
    shutil.copytree(top / "whole", top / "half")
    (top / "half" / "parts" / "definitions" / "0" / "uniform.json").unlink()
    names = ("runs.jsonl.gz", "summary.csv", "effects.json", "verdicts.json")
    return top, lambda out: [(out / name).read_bytes() for name in names]


@pytest.mark.parametrize("kind", ["digits", "scale", "claims"])
def test_damage_is_told_or_changes_nothing(kind, request, tmp_path, capsys):
    top, results = request.getfixturevalue(kind)
    seed = random.randrange(10**6)
    chance, want = random.Random(seed), results(top / "whole")
    command = ["run"] if kind == "claims" else ["train"]
    for number in range(VARIANTS):
        out = tmp_path / str(number)
        shutil.copytree(top / chance.choice(["half", "whole"]), out)
        what = f"seed {seed}, number {number}: {damage(out, chance)}"
        code = main([*command, "--resume", "--out", str(out)])
        said = capsys.readouterr().err
        lines = [line.split(":")[0] for line in said.splitlines()]
        assert "Traceback" not in said, what
        if code == 2:
            assert lines.count("error") == 1, (what, said)
        else:
            assert code == 0 and "error" not in lines, (what, said)
            assert "note" in lines or results(out) == want, what
        shutil.rmtree(out)
