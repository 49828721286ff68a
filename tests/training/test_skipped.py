"""A step that is not finite changes nothing, on one device and on two, and what is kept of it."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kunlun_jax.batch import Batch
from kunlun_jax.models.pooled_product import PooledProduct, PooledProductConfig
from kunlun_jax.training.locate import where_not_finite
from kunlun_jax.training.optimizer import row_wise_adagrad
from kunlun_jax.training.run import Run, prepare
from kunlun_jax.training.skipped import KEPT, NO_ROW, Skipped, all_finite, lines_of, only_if, told
from kunlun_jax.training.step import TrainState
from tests.training.mesh_steps import cut_small_things
from tests.training.tiny import tiny_config

SMALL = PooledProductConfig(dim=8, embedding_dim=4, head_hidden=(8,), dropout=0.2, skip_events=("impression",))


@pytest.fixture(scope="module", params=[1, 2], ids=["one_device", "two_devices"])
def run(request) -> Iterator[Run]:
    """On two devices one table is dealt to parts, and the others are on both; dense parameters are cut."""
    with pytest.MonkeyPatch.context() as patch:
        cut_small_things(patch.setattr)
        config = tiny_config("--mesh.fsdp", str(request.param), "--optimizer.warmup", "0")
        yield prepare(dataclasses.replace(config, model=SMALL))


@pytest.fixture(scope="module")
def batches(run) -> list[Batch]:
    """Three batches on the host."""
    with run.loader("train", training=True) as loader:
        return [batch for (batch, _), _ in zip(loader, range(3), strict=False)]


def spoilt(batch: Batch, place: int) -> Batch:
    """The batch, in which one example has a dense feature that is no number."""
    dense = batch.dense.copy()
    dense[place, 1] = np.nan
    return dataclasses.replace(batch, dense=dense)


def trained(state: TrainState) -> dict[str, np.ndarray]:
    """All that a skipped step must leave, by name."""
    left = (state.params, state.tables, state.optimizer, state.table_optimizer, state.sums, state.key)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(left))
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def assert_same_bytes(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        assert leaf.tobytes() == expected[name].tobytes(), name


def test_a_skipped_step_is_one_that_never_happened(run, batches):
    """And the run goes on as one whose step counter alone moved."""
    trainer = run.trainer
    state, _ = trainer.step(trainer.init(), trainer.put(batches[0]))
    other = jax.tree.map(jnp.copy, state)
    before = trained(state)
    for place in (3, batches[1].size - 2):  # of the first device, and of the last
        number = int(state.step)
        state, progress = trainer.step(state, trainer.put(spoilt(batches[1], place)))
        assert_same_bytes(trained(state), before)
        skipped = jax.device_get(progress.skipped)
        at = int(skipped.count) - 1
        assert int(state.step) == skipped.steps[at] == number + 1 and skipped.streak == at + 1
        assert (skipped.examples[at], skipped.rows[at]) == (1, batches[1].row[place])
    state, progress = trainer.step(state, trainer.put(batches[2]))
    assert int(progress.skipped.streak) == 0
    other = dataclasses.replace(other, step=other.step + jnp.asarray(2, jnp.int32))
    # The fourth step starts a log line, in which neither has skipped any.
    other, expected = trainer.step(other, trainer.put(batches[2]))
    assert int(progress.skipped.count) == int(expected.skipped.count) == 0
    assert_same_bytes(trained(state), trained(other))
    assert any(leaf.tobytes() != before[name].tobytes() for name, leaf in trained(state).items())


def test_a_loss_that_is_not_finite_without_such_a_logit_has_no_first_example(run, batches):
    trainer = run.trainer
    weights = np.where(np.arange(batches[0].size) == 5, np.inf, 1.0).astype(np.float32)
    _, progress = trainer.step(trainer.init(), trainer.put(dataclasses.replace(batches[0], weights=weights)))
    assert progress.skipped.count == 1
    assert (progress.skipped.examples[0], progress.skipped.rows[0]) == (0, NO_ROW)


def test_where_it_comes_from_is_named(run, batches, monkeypatch):
    trainer, state = run.trainer, run.trainer.init()
    state = dataclasses.replace(state, step=state.step + jnp.asarray(1, jnp.int32))
    batch = trainer.put(batches[0])

    def found(state: TrainState, batch: Batch = batch) -> str:
        return where_not_finite(trainer, state, batch).removeprefix("the first that is not finite, ")

    assert found(state) == "loss or gradient was not finite, and was when the step ran once more"
    assert found(state, trainer.put(spoilt(batches[0], 3))) == "forward: the batch's dense features"

    large = jax.tree.map(jnp.copy, state.params)
    large["head"]["layers"][1]["kernel"][...] = jnp.full_like(large["head"]["layers"][1]["kernel"][...], 3e38)
    large["head"]["layers"][0]["bias"][...] = jnp.full_like(large["head"]["layers"][0]["bias"][...], 1e3)
    assert found(dataclasses.replace(state, params=large)) == "forward: output of head.layers.1"

    tables = state.tables | {"item_id": jnp.full_like(state.tables["item_id"], jnp.nan)}
    assert found(dataclasses.replace(state, tables=tables)) == "forward: rows of table item_id"

    logits = PooledProduct.logits

    def rooted(self, *args):
        """As before, with a gradient that is not finite, since that of a root at zero is infinite."""
        out = logits(self, *args)
        return out + jnp.sqrt(out * 0.0)

    monkeypatch.setattr(PooledProduct, "logits", rooted)
    assert found(state).startswith("backward: gradient of parameter head.layers.1.")
    call = PooledProduct.__call__
    assert "watching" not in call.__qualname__  # what was watched is as it was


def test_squares_that_overflow_are_not_finite():
    assert all_finite({"a": jnp.float32([1e18, -1.0]), "b": jnp.zeros(0)})
    for bad in (jnp.inf, -jnp.inf, jnp.nan, 1e20):
        assert not all_finite([jnp.float32([1.0]), jnp.float32([0.0, bad])])


def test_many_entries_whose_squares_overflow_together_are_not_finite():
    many = jnp.full(10_000, 1e18, jnp.float32)
    assert not jnp.isfinite(jnp.square(many).sum()) and not all_finite(many)
    assert all_finite(many * 0.1)


def test_an_optimizer_leaves_every_bit():
    """The sign of a zero, too; and where it does not it is the same optimizer."""
    table = jnp.float32([[-0.0, 1.5], [0.0, 2.0]])
    optimizer = row_wise_adagrad(0.1, 0.5)
    state = optimizer.init(table)
    for gradient in (jnp.full((2, 2), jnp.nan), jnp.ones((2, 2))):
        updates, new = only_if(jnp.bool(False), optimizer).update(gradient, state)
        assert np.asarray(optax.apply_updates(table, updates)).tobytes() == np.asarray(table).tobytes()
        jax.tree.map(np.testing.assert_array_equal, new, state)
    found, expected = only_if(jnp.bool(True), optimizer).update(gradient, state), optimizer.update(gradient, state)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_skipped_steps_are_counted_and_the_first_are_noted():
    """Against a list, over log lines of 40 steps, of which one skips more than are noted."""
    sound = np.random.default_rng(0).random(200) > 0.3
    sound[80:120] = np.arange(40) > 30
    state, after, streak = Skipped.none(), jax.jit(Skipped.after), 0
    for number, good in enumerate(sound):
        if number % 40 == 0:
            expected = []
        if not good:
            expected.append([number + 1, number % 7, 1000 + number])
        streak = 0 if good else streak + 1
        state = after(state, number + 1, good, number % 40 == 0, number % 7, 1000 + number)
        assert (state.count, state.streak) == (len(expected), streak)
        found = np.stack([state.steps, state.examples, state.rows], axis=1)[: len(expected)]
        assert found.tolist() == expected[:KEPT]
    assert KEPT < 31


def skipped_steps(*steps: int, rows: tuple[int, ...] = ()) -> Skipped:
    def kept(values) -> np.ndarray:
        return np.pad(np.asarray(values, np.int32), (0, KEPT))[:KEPT]

    count, streak = np.array(len(steps), np.int32), np.zeros((), np.int32)
    return Skipped(count, streak, kept(steps), kept([2] * len(rows)), kept(rows))


def test_a_warning_tells_steps():
    assert told(9, skipped_steps(7)) == "step 7 was skipped, since its loss or gradient was not finite"
    assert told(9, skipped_steps(7, 9)).startswith("2 steps from 7 to 9 were skipped")
    many = dataclasses.replace(skipped_steps(*range(2, 2 + KEPT)), count=np.array(KEPT + 3, np.int32))
    assert told(40, many).startswith(f"{KEPT + 3} steps from 2 to 40 were skipped")


def test_lines_hold_keys_of_the_batch_and_of_the_first(run):
    dataset, start = run.dataset, run.dataset.split("train").start
    rows = {6: np.array([200, 201, 205]) + start, 8: np.array([300]) + start}
    skipped = skipped_steps(7, 9, rows=(201 + start, NO_ROW))
    first, second = lines_of(9, skipped, dataset, rows.__getitem__)
    assert (first["step"], first["skipped"], first["not_finite"]) == (9, 7, 2)
    assert first["first"]["rows"] == [201] and first["examples"]["rows"] == [200, 201, 205]
    keys = dataset.source.keys(rows[6])
    assert first["examples"]["keys"] == {name: values.tolist() for name, values in keys.items()}
    assert first["first"]["keys"] == {name: [values[1].item()] for name, values in keys.items()}
    assert (second["skipped"], second["first"]) == (9, None)
