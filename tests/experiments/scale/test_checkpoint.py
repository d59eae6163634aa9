"""A damaged checkpoint is noticed and the one before is used; nothing is lost."""

import json
import shutil

import jax
import jax.numpy as jnp
import msgspec
import pytest
from chex import assert_trees_all_equal

from experiments.common import checkpoint, checksums, records
from experiments.common.checkpoint import Identity
from experiments.common.errors import UserError
from experiments.scale.step import TrainState


class Beside(msgspec.Struct):
    stream: int


def state_at(step):
    value = jnp.arange(6.0).reshape(2, 3) + step
    count = jnp.int32(step)
    return TrainState(
        count, {"w": value}, {"bn": {"mean": value[0]}}, (value,), count, count
    )


def save(out, step):
    run = Identity(out, "f", Beside)
    checkpoint.save(run, step, state_at(step), Beside(step), keep=2)


def restore(out, *, fingerprint="f", like=None, kind=Beside):
    run = Identity(out, fingerprint, kind)
    return checkpoint.restore_newest(run, state_at(0) if like is None else like)


def read(out, *, fingerprint="f", like=None):
    run = Identity(out, fingerprint, Beside)
    return checkpoint.read_newest(run, state_at(0) if like is None else like).state


@pytest.fixture(scope="module")
def two_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    for step in (2, 4, 6):
        save(out, step)
    return out


@pytest.fixture
def two(two_once, tmp_path):
    return shutil.copytree(two_once, tmp_path / "run")


def test_the_newest_comes_back_bit_for_bit_and_old_ones_go(two):
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["4", "6"]
    assert sorted(p.name for p in (two / "checksums").iterdir()) == ["4.json", "6.json"]
    found = restore(two)
    assert found.data == Beside(6)
    assert_trees_all_equal(found.state, state_at(6))
    assert jax.tree.structure(found.state) == jax.tree.structure(state_at(0))


def largest_file(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def cut(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(folder):
    largest_file(folder).unlink()


def without_checksums(folder):  # killed between the two
    (folder.parent.parent / "checksums" / f"{folder.name}.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, lose, without_checksums])
def test_a_damaged_one_is_put_aside_and_the_one_before_used(damage, two, capsys):
    damage(two / "checkpoints" / "6")
    found = restore(two)
    assert_trees_all_equal(found.state, state_at(4))
    assert (two / "damaged" / "6").is_dir()
    assert "checkpoint of step 6 is not whole" in capsys.readouterr().err
    save(two, 6)  # and its step can be saved again
    assert_trees_all_equal(restore(two).state, state_at(6))


def test_reading_for_another_purpose_moves_nothing(two):
    flip(two / "checkpoints" / "6")
    found = read(two)
    assert_trees_all_equal(found, state_at(4))
    assert (two / "checkpoints" / "6").is_dir()


def test_none_whole_none_there_and_another_run(two, tmp_path):
    assert restore(tmp_path / "nothing") is None
    with pytest.raises(UserError, match="must be of a run with the options"):
        restore(two, fingerprint="other")
    other = state_at(0)._replace(params={"w": jnp.zeros(5)})
    with pytest.raises(UserError, match=r"must hold this run.*float32"):
        restore(two, like=other)
    with pytest.raises(UserError, match=r"must hold this run.*float32"):
        read(two, like=other)
    with pytest.raises(UserError, match="must be of a run with the options"):
        read(two, fingerprint="other")
    for step in ("4", "6"):
        cut(two / "checkpoints" / step)
    with pytest.raises(UserError, match="must be whole, but none of 2 is"):
        restore(two)
    assert {p.name for p in (two / "damaged").iterdir()} == {"4", "6"}


def test_a_save_that_fails_leaves_the_others_alone(two, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match="No space left on device"):
            save(two, 8)
    assert_trees_all_equal(restore(two).state, state_at(6))


def test_checkpoints_that_are_gone_are_missed(two):
    shutil.rmtree(two / "checkpoints")
    with pytest.raises(UserError, match="must have the checkpoints that it has checks"):
        restore(two)


def test_a_description_of_another_form_is_one_line(two):
    class Other(msgspec.Struct):
        stream: str

    with pytest.raises(records.DamagedError, match=r"must be whole, but: Expected"):
        restore(two, kind=Other)
    path = two / "checkpoints" / "6" / "about" / "metadata"
    for content in ({"kind": 5}, {}, {"fingerprint": "f"}):
        path.write_text(json.dumps(content))
        checksums.write(two, 6)  # as if it had been written so
        with pytest.raises(UserError) as error:
            restore(two)
        assert "\n" not in str(error.value)


def test_a_sealed_file_must_stay(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    checksums.check(tmp_path, "a")  # not sealed: nobody knows
    checksums.seal(tmp_path, "a")
    checksums.seal(tmp_path, "b")
    checksums.check(tmp_path, "a", "b", "c")
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").unlink()
    for name in "ab":
        with pytest.raises(records.DamagedError, match=f"{name}' must be as the"):
            checksums.check(tmp_path, name)
    (tmp_path / "checksums" / "files.json").write_text("{}")
    with pytest.raises(records.DamagedError, match="missing required field"):
        checksums.check(tmp_path, "c")
