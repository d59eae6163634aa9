"""A damaged checkpoint is noticed and the one before is used; nothing is lost."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from chex import assert_trees_all_equal

from experiments.errors import UserError
from experiments.scale import checkpoint
from experiments.scale.step import TrainState


def state_at(step):
    value = jnp.arange(6.0).reshape(2, 3) + step
    count = jnp.int32(step)
    return TrainState(
        count, {"w": value}, {"bn": {"mean": value[0]}}, (value,), count, count
    )


def save(out, step, **options):
    settings = {"data": {"stream": step}, "fingerprint": "f", "keep": 2} | options
    checkpoint.save(out, state_at(step), **settings)


def restore(out, *, fingerprint="f"):
    return checkpoint.restore_newest(out, state_at(0), fingerprint=fingerprint)


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
    assert found.data == {"stream": 6}
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
    found = checkpoint.read_newest(two, state_at(0), fingerprint="f")
    assert_trees_all_equal(found, state_at(4))
    assert (two / "checkpoints" / "6").is_dir()


def test_none_whole_none_there_and_another_run(two, tmp_path):
    assert restore(tmp_path / "nothing") is None
    with pytest.raises(UserError, match="must be of a run with the options"):
        restore(two, fingerprint="other")
    other = state_at(0)._replace(params={"w": jnp.zeros(5)})
    with pytest.raises(UserError, match=r"must hold this run.*float32"):
        checkpoint.restore_newest(two, other, fingerprint="f")
    with pytest.raises(UserError, match=r"must hold this run.*float32"):
        checkpoint.read_newest(two, other, fingerprint="f")
    with pytest.raises(UserError, match="must be of a run with the options"):
        checkpoint.read_newest(two, state_at(0), fingerprint="other")
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
