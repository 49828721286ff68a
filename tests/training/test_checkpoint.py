"""What is saved comes back bit for bit, whatever happens meanwhile."""

import errno
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kunlun_jax.checksums import FILE
from kunlun_jax.training import checkpoint
from kunlun_jax.training.checkpoint import DAMAGED, Checkpoints, DamagedCheckpoint
from kunlun_jax.training.metrics import MetricSums
from kunlun_jax.training.optimizer import OptimizerConfig, dense_optimizer, table_optimizer
from kunlun_jax.training.skipped import Skipped
from kunlun_jax.training.step import TrainState

POSITION = {"loader": {"next": 7, "identity": {"split": "train"}}, "counts": {"examples": 3, "events": {"click": 5}}}


def make_state(seed: int = 0) -> TrainState:
    key = jax.random.key(seed)
    params = {"layer": {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.asarray([0.1, jnp.inf, -0.0])}}
    tables = {"item": jax.random.normal(key, (50_000, 8)), "user": jax.random.normal(key, (7, 8))}
    config = OptimizerConfig()
    return TrainState(
        step=jnp.asarray(seed, jnp.int32),
        params=params,
        tables=tables,
        optimizer=dense_optimizer(config, 10).init(params),
        table_optimizer={name: table_optimizer(config).init(table) for name, table in tables.items()},
        sums=jax.tree.map(lambda x: x + 1.25, MetricSums.zeros(2)),
        skipped=jax.tree.map(lambda x: x + 2, Skipped.none()),
        key=jax.random.key_data(key),
    )


@jax.jit
def _next(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state)


advance = jax.jit(_next, donate_argnums=0)
"""As a training step: it overwrites its input."""


def assert_same(actual: TrainState, expected: TrainState) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for new, old in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert new.dtype == old.dtype and new.shape == old.shape
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def host_copy(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)


def test_round_trip_of_state_and_position(tmp_path):
    state = make_state(3)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save(3, state, POSITION)
    checkpoints.close()

    again = Checkpoints(tmp_path)
    assert again.latest() == 3
    restored, position = again.restore(3, jax.eval_shape(make_state))
    again.close()
    assert_same(restored, host_copy(state))
    assert position == POSITION


@pytest.mark.parametrize("copied", [checkpoint.COPIED, 0])
def test_donated_steps_after_a_save_overwrite_the_state_and_not_what_is_saved(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "COPIED", copied)
    state = make_state()
    expected = host_copy(state)
    checkpoints = Checkpoints(tmp_path)
    place = state.tables["item"].unsafe_buffer_pointer()
    checkpoints.save(1, state, POSITION)
    for _ in range(20):
        old, state = state, advance(state)
        assert state.tables["item"].unsafe_buffer_pointer() == place, "a step after a save copied what it was given"
    assert old.tables["item"].is_deleted()
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, jax.eval_shape(make_state))
    assert_same(restored, expected)
    assert not np.array_equal(state.tables["item"], expected.tables["item"])
    checkpoints.close()


def test_what_was_restored_may_be_donated_and_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(), POSITION)
    checkpoints.wait()
    state, _ = checkpoints.restore(1, jax.eval_shape(make_state))
    for _ in range(3):
        state = advance(state)
    expected = host_copy(state)
    checkpoints.save(2, state, POSITION)
    checkpoints.wait()
    restored, _ = checkpoints.restore(2, jax.eval_shape(make_state))
    assert_same(restored, expected)
    first, _ = checkpoints.restore(1, jax.eval_shape(make_state))
    assert_same(first, host_copy(make_state()))
    checkpoints.close()


def test_the_newest_are_kept_and_saving_a_step_twice_is_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 3):
        checkpoints.save(step, make_state(), POSITION | {"at": step})
        checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert checkpoints.restore(3, jax.eval_shape(make_state))[1]["at"] == 3
    checkpoints.close()


@pytest.mark.parametrize("call", ["wait", "save", "close"])
def test_checksums_that_cannot_be_written_end_the_run_while_the_step_before_is_there(call, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), POSITION)
    checkpoints.wait()

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / FILE))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "seal", full)
        checkpoints.save(2, make_state(2), POSITION)
        arguments = (3, make_state(3), POSITION) if call == "save" else ()
        with pytest.raises(OSError, match=rf"No space left .* could not be written, .*{tmp_path / '2'}'") as caught:
            getattr(checkpoints, call)(*arguments)
        assert caught.value.errno == errno.ENOSPC
        checkpoints.close()  # told once
    again = Checkpoints(tmp_path)
    assert again.latest() == 1
    again.close()


def test_an_interrupted_write_does_not_count_and_may_be_made_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(), POSITION)
    checkpoints.close()
    # What Orbax leaves when it is killed before the last rename.
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    (unfinished / "state" / "d").write_bytes(b"half")

    again = Checkpoints(tmp_path)
    assert again.latest() == 1
    state = make_state(2)
    again.save(2, state, POSITION)
    again.wait()
    assert again.latest() == 2
    restored, _ = again.restore(2, jax.eval_shape(make_state))
    assert_same(restored, host_copy(state))
    again.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two_steps")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), POSITION | {"at": step})
    checkpoints.close()
    return folder


def flip(path, number: int) -> None:
    """Changes one bit, or with a negative number cuts or empties the file."""
    data = bytearray(path.read_bytes())
    if number >= 0:
        data[number * 7919 % len(data)] ^= 1 << number % 8
    path.write_bytes(bytes(data if number >= 0 else data[: len(data) // -number // 2]))


def test_a_damaged_step_is_named_and_the_newest_sound_one_is_used(two_steps, tmp_path, caplog):
    files = sorted(path.relative_to(two_steps) for path in (two_steps / "2").rglob("*") if path.is_file())
    files = [name for name in files if (two_steps / name).stat().st_size and name.name != FILE]
    assert len(files) > 4
    for number in range(-len(files), 40):
        name = files[number % len(files)]
        copy = tmp_path / str(number)
        shutil.copytree(two_steps, copy)
        flip(copy / name, number)
        caplog.clear()
        for writable in (False, True):
            checkpoints = Checkpoints(copy, writable=writable)
            assert checkpoints.latest() == 1, name
            assert str(copy / "2") in caplog.text and name.relative_to("2").as_posix() in caplog.text
            assert (copy / "2").exists() != writable and (copy / DAMAGED / "2").exists() == writable
            checkpoints.close()
        shutil.rmtree(copy)


def test_after_damage_training_goes_on_from_the_older_step(two_steps, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)
    flip(folder / "2" / "data" / "metadata", 5)
    checkpoints = Checkpoints(folder)
    restored, position = checkpoints.restore(1, jax.eval_shape(make_state))
    assert_same(restored, host_copy(make_state(1)))
    assert position["at"] == 1
    checkpoints.save(2, make_state(2), POSITION | {"at": 2})
    checkpoints.close()
    again = Checkpoints(folder)
    assert again.latest() == 2
    again.close()


def test_without_any_sound_step_there_is_nothing_to_go_on_from(two_steps, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)
    for step in ("1", "2"):
        flip(folder / step / FILE, 3)
    for writable in (False, True, True):
        with pytest.raises(DamagedCheckpoint, match=r"(?s)train anew in another --run.dir.*checksums.json"):
            Checkpoints(folder, writable=writable)


def test_a_write_that_was_cut_off_before_its_checksums_does_not_count(two_steps, tmp_path, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)
    (folder / "2" / FILE).unlink()
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 1 and "its write was cut off" in caplog.text
    checkpoints.close()


def test_steps_of_a_version_without_checksums_are_used_and_it_is_said(two_steps, tmp_path, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)
    for step in ("1", "2"):
        (folder / step / FILE).unlink()
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 2 and "has no checksums and is used unchecked" in caplog.text
    checkpoints.close()
