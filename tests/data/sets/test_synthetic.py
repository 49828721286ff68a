"""The synthetic world: reproducible rows, histories that hold no future, and probabilities that are exact."""

import dataclasses
import itertools
import math
import pickle
import sys

import numpy as np
import pytest

from kunlun_jax.data.dataset import Dataset, EventRows, Rows
from kunlun_jax.data.sets.synthetic import P_TRAIN_ROWS, SyntheticConfig, SyntheticSource, open_dataset
from kunlun_jax.data.sets.synthetic_clicks import CONTEXT, DENSE, DEVICES, POSITIONS, ClickLaw, pure_cross
from kunlun_jax.data.sets.synthetic_world import DAY_MS, START_MS, STREAMS, draw, stream, uniform, zipf_lookup
from tests import processes

SMALL = SyntheticConfig(train_rows=3000, valid_rows=500, test_rows=700, users=400)
ALL = dict.fromkeys(STREAMS, 1024)


def leaves(value, path: str = "") -> dict[str, np.ndarray]:
    """Arrays of a `Rows`, by path."""
    if isinstance(value, np.ndarray):
        return {path: value}
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {p: leaf for name, item in value.items() for p, leaf in leaves(item, f"{path}.{name}").items()}


def assert_equal_rows(one: Rows, other: Rows):
    ours, theirs = leaves(one), leaves(other)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == theirs[path].dtype, path
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def single(rows: Rows, i: int) -> Rows:
    """Row `i` alone, cut out by hand."""

    def ragged(value):
        a, b = value.splits[i : i + 2]
        cut = {"splits": np.array([0, b - a])}
        if isinstance(value, EventRows):
            cut |= {"ids": value.ids[a:b], "dense": value.dense[a:b], "time_ms": value.time_ms[a:b]}
            return EventRows(**cut, available=value.available[i : i + 1])
        return dataclasses.replace(value, values=value.values[a:b], **cut)

    plain = ("row", "categorical", "dense", "labels", "weights", "request_time_ms")
    return Rows(
        **{name: getattr(rows, name)[i : i + 1] for name in plain},
        multi_valued={name: ragged(value) for name, value in rows.multi_valued.items()},
        events={name: ragged(value) for name, value in rows.events.items()},
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset(SMALL)


@pytest.fixture(scope="module")
def everyday() -> tuple[SyntheticSource, Rows]:
    """Every tenth training row of the default configuration."""
    source = SyntheticSource(SyntheticConfig())
    return source, source.rows(np.arange(0, SyntheticConfig().train_rows, 10), ALL)


# --- the same rows, however they are asked for ---


@pytest.mark.parametrize("limits", [ALL, {"impression": 5, "click": 0, "purchase": 2}], ids=["uncut", "cut"])
def test_a_row_does_not_depend_on_the_call_that_asks_for_it(dataset, limits):
    index = np.random.default_rng(0).integers(0, len(dataset.source), 150)
    together = dataset.source.rows(index, limits)
    for i, row in enumerate(index):
        assert_equal_rows(single(together, i), dataset.source.rows(np.array([row]), limits))


def test_a_fresh_process_and_a_pickled_source_make_the_same_rows(dataset):
    index = np.arange(0, len(dataset.source), 40)
    here = dataset.source.rows(index, ALL)
    pickled = pickle.dumps(dataset.source)
    assert len(pickled) < 5000
    assert_equal_rows(here, pickle.loads(pickled).rows(index, ALL))
    code = (
        "import sys, pickle, numpy as np\n"
        "source, index, limits = pickle.load(sys.stdin.buffer)\n"
        "pickle.dump(source.rows(index, limits), sys.stdout.buffer)"
    )
    arguments = pickle.dumps((dataset.source, index, ALL))
    done = processes.run([sys.executable, "-c", code], given=arguments, text=False)
    assert done.returncode == 0, done.stderr.decode()
    assert_equal_rows(here, pickle.loads(done.stdout))


def test_probabilities_do_not_depend_on_the_chunking(dataset):
    index = np.arange(2500)
    whole = dataset.source.probability(index)
    assert whole.dtype == np.float64
    assert whole.shape == (2500, 1)
    parts = [dataset.source.probability(part) for part in np.split(index, [1, 8, 1000, 1003])]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    order = np.random.default_rng(1).permutation(index)
    np.testing.assert_array_equal(dataset.source.probability(order), whole[order])


def test_no_rows_asked_for_give_no_rows(dataset):
    rows = dataset.source.rows(np.zeros(0, np.int64), ALL)
    assert rows.categorical.shape == (0, len(CONTEXT))
    assert rows.labels.shape == (0, 1)
    assert all(history.splits.tolist() == [0] for history in rows.events.values())
    assert dataset.source.probability(np.zeros(0, np.int64)).shape == (0, 1)


def test_seeds_make_different_worlds():
    index = np.arange(200)
    one, other = (SyntheticSource(dataclasses.replace(SMALL, seed=seed)).rows(index, ALL) for seed in (0, 1))
    assert np.mean(one.categorical[:, 0] == other.categorical[:, 0]) < 0.1
    assert np.mean(one.dense[:, 0] == other.dense[:, 0]) < 0.1


def test_validation_and_test_rows_do_not_depend_on_the_size_of_training():
    larger = open_dataset(dataclasses.replace(SMALL, train_rows=5000))
    smaller = open_dataset(SMALL)
    for name in ("valid", "test"):
        one, other = (np.arange(d.split(name).start, d.split(name).stop) for d in (larger, smaller))
        rows = [d.source.rows(i, ALL) for d, i in ((larger, one), (smaller, other))]
        assert_equal_rows(dataclasses.replace(rows[0], row=rows[1].row), rows[1])


def test_every_field_of_the_configuration_changes_the_fingerprint():
    config = dataclasses.replace(SMALL, train_rows=10, valid_rows=1, test_rows=1)
    changed = [dataclasses.replace(config, conversion=True)] + [
        dataclasses.replace(config, **{field.name: getattr(config, field.name) + 1})
        for field in dataclasses.fields(config)
        if field.name != "conversion"
    ]
    prints = [open_dataset(c).fingerprint for c in [config, *changed]]
    assert len(set(prints)) == len(dataclasses.fields(config)) + 1
    assert open_dataset(config).fingerprint == prints[0]


# --- rows as the schema and the protocol want them ---


def test_rows_agree_with_the_schema():
    source = SyntheticSource(dataclasses.replace(SMALL, conversion=True))
    schema, rows = source.schema, source.rows(np.arange(len(source)), ALL)
    assert tuple(f.name for f in schema.categorical) == CONTEXT
    assert schema.dense == DENSE
    n = len(source)
    for column, feature in zip(rows.categorical.T, schema.categorical, strict=True):
        assert 0 <= column.min() <= column.max() < feature.size, feature
    assert rows.categorical.dtype == np.int64
    assert rows.dense.dtype == np.float32
    assert np.isfinite(rows.dense).all()
    assert rows.labels.shape == (n, 2)
    tags = rows.multi_valued["tags"]
    assert set(np.diff(tags.splits)) == {1, 2, 3, 4}
    assert 0 <= tags.values.min() <= tags.values.max() < SMALL.tags
    for start, stop in itertools.pairwise(tags.splits[:300]):
        assert len(set(tags.values[start:stop])) == stop - start
    for event in schema.events:
        history = rows.events[event.name]
        assert history.ids.shape == (history.splits[-1], len(event.categorical))
        assert history.dense.shape == (history.splits[-1], len(event.dense))
        assert history.dense.dtype == np.float32
        for column, feature in zip(history.ids.T, event.categorical, strict=True):
            assert 0 <= column.min() <= column.max() < feature.size, feature


def test_request_times_rise_and_give_hour_and_weekday(dataset):
    rows = dataset.source.rows(np.arange(len(dataset.source)), dict.fromkeys(STREAMS, 0))
    time = rows.request_time_ms
    assert (np.diff(time) >= 0).all()
    days = (time - START_MS) / DAY_MS
    for name, (first, last) in {"train": (0, 28), "valid": (28, 35), "test": (35, 42)}.items():
        inside = days[dataset.split(name).start : dataset.split(name).stop]
        assert first <= inside.min() < first + 0.1
        assert last - 0.1 < inside.max() < last
    moment = time.astype("datetime64[ms]")
    weekday = (moment.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    np.testing.assert_array_equal(rows.categorical[:, CONTEXT.index("weekday")], weekday)
    hour = (moment - moment.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)
    np.testing.assert_array_equal(rows.categorical[:, CONTEXT.index("hour")], hour)


def test_keys_are_the_columns_of_the_rows(dataset):
    index = np.array([5, 4100, 5, 77])
    keys, rows = dataset.source.keys(index), dataset.source.rows(index, ALL)
    assert tuple(keys) == dataset.schema.keys
    np.testing.assert_array_equal(keys["user_id"], rows.categorical[:, 0])
    np.testing.assert_array_equal(keys["item_id"], rows.categorical[:, 1])
    np.testing.assert_array_equal(keys["request_time_ms"], rows.request_time_ms)


# --- histories ---


def test_events_are_sorted_and_strictly_before_the_request(everyday):
    _, rows = everyday
    for history in rows.events.values():
        row = np.repeat(np.arange(len(rows.row)), np.diff(history.splits))
        assert (history.time_ms < rows.request_time_ms[row]).all()
        assert (np.diff(history.time_ms)[row[1:] == row[:-1]] >= 0).all()


def test_counts_agree_with_a_walk_over_the_stream_to_the_millisecond(dataset):
    """Around every event's own time: an event at t is not before t, and is before t + 1."""
    world = dataset.source.world
    one = world.users(np.array([3]))
    for event in STREAMS:
        stored = world.events(one, event, np.array([200]), 200)
        ends = np.concatenate([stored.time_ms, stored.time_ms + 1, stored.time_ms - 1])
        ends = np.sort(ends[ends <= stored.time_ms[-1]])
        counted = world.counts(world.users(np.full(len(ends), 3)), event, ends)
        np.testing.assert_array_equal(counted, np.searchsorted(stored.time_ms, ends, side="left"))


def test_lengths_agree_with_the_rows(dataset):
    index = np.arange(0, len(dataset.source), 3)
    rows = dataset.source.rows(index, {"impression": 10, "click": 3, "purchase": 1})
    for event, limit in (("impression", 10), ("click", 3), ("purchase", 1)):
        lengths = dataset.source.history_lengths(index, event)
        assert lengths.dtype == np.int64
        np.testing.assert_array_equal(lengths, rows.events[event].available)
        np.testing.assert_array_equal(np.diff(rows.events[event].splits), np.minimum(lengths, limit))
    tags = dataset.source.list_lengths(index, "tags")
    np.testing.assert_array_equal(tags, np.diff(rows.multi_valued["tags"].splits), strict=True)
    with pytest.raises(KeyError, match="no multi-valued feature 'labels'; it has 'tags'"):
        dataset.source.list_lengths(index, "labels")


def test_a_cut_keeps_the_newest_events_and_the_labels(dataset):
    index = np.arange(300)
    full, cut = dataset.source.rows(index, ALL), dataset.source.rows(index, dict.fromkeys(STREAMS, 6))
    np.testing.assert_array_equal(full.labels, cut.labels)
    for name, history in cut.events.items():
        for i in range(300):
            start, stop = history.splits[i : i + 2]
            end = full.events[name].splits[i + 1]
            np.testing.assert_array_equal(history.ids[start:stop], full.events[name].ids[end - (stop - start) : end])
            assert stop - start == min(6, full.events[name].available[i])


def test_a_history_grows_only_at_its_new_end(dataset):
    """Two requests of one user tell the same past: what the earlier one saw, the later one sees unchanged."""
    rows = dataset.source.rows(np.arange(3000), ALL)
    user = rows.categorical[:, 0]
    pairs = 0
    for name in np.unique(user)[:60]:
        mine = np.flatnonzero(user == name)
        for history in rows.events.values():
            if len(mine) < 2 or history.available[mine[-1]] == SMALL.history_limit:
                continue
            early, late = history.splits[mine[0] : mine[0] + 2], history.splits[mine[-1] : mine[-1] + 2]
            size = early[1] - early[0]
            np.testing.assert_array_equal(history.ids[slice(*early)], history.ids[late[0] : late[0] + size])
            np.testing.assert_array_equal(history.time_ms[slice(*early)], history.time_ms[late[0] : late[0] + size])
            pairs += size > 0
    assert pairs > 50


def test_lengths_are_heavy_tailed(everyday):
    _, rows = everyday
    lengths = {name: history.available for name, history in rows.events.items()}
    assert lengths["impression"].max() == 1024
    assert np.mean(lengths["impression"] >= 1000) > 1e-3
    assert np.mean(lengths["impression"] == 0) > 0.08
    assert np.median(lengths["impression"]) < 0.6 * lengths["impression"].mean()
    means = [lengths[name].mean() for name in ("impression", "click", "purchase")]
    assert 25 < means[0] < 60
    assert 8 < means[1] < 25
    assert 2 < means[2] < 8


def test_purchases_tell_more_of_the_interests_than_clicks_and_these_than_impressions(everyday):
    """Share of recent events whose topic is one that the user has as an interest at the time of the request."""
    source, rows = everyday
    users = source.world.users(rows.categorical[:, 0])
    held = np.zeros((len(rows.row), SyntheticConfig().topics), bool)
    for slot in range(5):
        has = np.flatnonzero(slot < users.interests)
        topic = source.world.interest(
            users.key[has], np.full(len(has), slot), rows.request_time_ms[has], np.full(1, 0.5)
        )
        held[has, topic] = True
    share = {}
    for name, history in rows.events.items():
        row = np.repeat(np.arange(len(rows.row)), np.diff(history.splits))
        recent = rows.request_time_ms[row] - history.time_ms < 5 * DAY_MS
        share[name] = held[row[recent], history.ids[recent, 1]].mean()
    assert share["purchase"] > share["click"] + 0.1 > share["impression"] + 0.2
    assert share["impression"] > held.mean() + 0.02


def test_interests_drift_but_the_first_stays(everyday):
    world = everyday[0].world
    key = world.users(np.arange(2000)).key
    at = [np.full(2000, START_MS + days * DAY_MS) for days in (0, 3, 90)]
    half = np.full(2000, 0.5)
    for slot, (soon, late) in {0: (1.0, 1.0), 1: (0.8, 0.0)}.items():
        topics = [world.interest(key, np.full(2000, slot), time, half) for time in at]
        assert np.mean(topics[0] == topics[1]) >= soon
        assert np.mean(topics[0] == topics[2]) >= late
    assert np.mean(topics[0] == topics[1]) < 1.0
    assert np.mean(topics[0] == topics[2]) < 0.3
    # In the middle of a change both topics occur, each for about half of the chances.
    users, chances = 200, np.arange(64) / 64
    start = START_MS - (uniform(key[:users]) + 0.2) * 30 * DAY_MS + 15 * DAY_MS  # phase of slot 1 at one half
    grid = [world.interest(key[:users], np.full(users, 1), start, np.full(users, chance)) for chance in chances]
    first = np.mean(np.stack(grid) == grid[-1], axis=0)
    assert np.median(first) == pytest.approx(0.5, abs=0.02)


# --- probabilities ---


def slow_probabilities(rows: Rows, i: int, law: ClickLaw, config: SyntheticConfig) -> tuple[float, float]:
    """Click and conversion probability of row `i`, from what the row shows, event by event, in plain Python."""
    c = dict(zip(CONTEXT, rows.categorical[i].tolist(), strict=True))
    d = dict(zip(DENSE, rows.dense[i].tolist(), strict=True))
    now = int(rows.request_time_ms[i])
    price_step = 1 / (config.prices - 1)
    histories = {}
    for name, history in rows.events.items():
        a, b = history.splits[i : i + 2]
        listed = []
        for e in range(b - 1, a - 1, -1):  # newest first
            item, topic, brand, _ = history.ids[e].tolist()
            dwell = float(history.dense[e, 0]) if name == "click" else 1.0
            listed.append({"item_id": item, "topic": topic, "brand": brand, "dwell": dwell})
            listed[-1]["days"] = (now - int(history.time_ms[e])) / 86_400_000
        histories[name] = listed

    worth = {"impression": (0.12, 0.05, 10), "click": (0.9, 0.5, 20), "purchase": (1.8, 1.3, 40)}
    total = 0.0
    for name, (of_topic, of_brand, half_life) in worth.items():
        for column, weight in (("topic", of_topic), ("brand", of_brand)):
            strength = sum(
                e["dwell"] * 0.5 ** (e["days"] / half_life) for e in histories[name] if e[column] == c[column]
            )
            total += weight * math.log(1 + strength)
    affinity = 3.2 * math.tanh(total / 2.4)
    customer = sum(e["brand"] == c["brand"] and e["days"] > 30 for e in histories["purchase"])
    habit = sum(e["topic"] == c["topic"] for e in histories["click"][32:])
    old = 0.5 * min(customer, 4) + 0.4 * math.log(1 + habit)
    tired = 0.35 * sum(e["topic"] == c["topic"] for e in histories["impression"][:8])
    tired += 0.3 * min(2, sum(e["item_id"] == c["item_id"] for e in histories["impression"][:128]))

    tags = rows.multi_valued["tags"]
    daypart = c["hour"] // 6
    logit = -2.1 + law.device_gain[c["device"]] * affinity + old - tired
    logit += law.item[c["item_id"]] + law.topic[c["topic"]] + law.brand[c["brand"]] + law.device[c["device"]]
    logit += law.user(np.array([c["user_id"]]))[0]
    logit -= 0.15 * c["position"]
    logit += 0.6 * math.tanh(d["quality"]) - 0.15 * (d["freshness"] - 1) ** 2 - 0.3 * max(d["scroll_speed"], 0)
    logit += 1.2 * d["discount"] * (1 - price_step * c["price"])
    for tag in tags.values[tags.splits[i] : tags.splits[i + 1]]:
        logit += law.segment_tag[c["segment"], tag]
    logit += law.country_device[c["country"], c["device"]]
    logit += law.segment_topic_daypart[c["segment"], c["topic"], daypart]
    logit += law.device_price_weekday[c["device"], c["price"], c["weekday"]]
    logit += law.country_brand_position[c["country"], c["brand"], c["position"] // 2]
    logit += law.segment_device_price_daypart[c["segment"], c["device"], c["price"], daypart]
    buys = -1.6 - 0.8 * price_step * c["price"] + 1.5 * d["discount"] + 0.5 * affinity + old
    click = 1 / (1 + math.exp(-logit))
    return click, click / (1 + math.exp(-buys))


def test_probabilities_follow_from_the_inputs_alone():
    config = dataclasses.replace(SMALL, conversion=True, history_limit=200)
    source = SyntheticSource(config)
    candidates = np.arange(3000)
    longest = candidates[np.argsort(source.history_lengths(candidates, "click"))[-30:]]
    index = np.concatenate([np.arange(120), longest])
    rows = source.rows(index, dict.fromkeys(STREAMS, 200))
    assert rows.events["click"].available.max() == 200
    assert rows.events["click"].available.min() == 0
    expected = [slow_probabilities(rows, i, source.law, config) for i in range(len(index))]
    np.testing.assert_allclose(source.probability(index), expected, rtol=1e-9)


def test_each_part_of_the_events_matters(everyday):
    source, rows = everyday
    for part in (source.law.affinity, source.law.long_term, source.law.fatigue):
        value = part(rows)
        assert np.mean(value != 0) > 0.05
        assert value.std() > 0.3


def test_the_terms_add_up_to_the_log_odds(everyday):
    source, rows = everyday
    terms = source.click_terms(rows.row)
    odds = source.probability(rows.row)[:, 0]
    total = sum(terms.values())
    constant = np.log(odds / (1 - odds)) - total
    np.testing.assert_allclose(constant, constant[0], atol=1e-9)
    assert min(value.std() for value in terms.values()) > 0.1


def test_labels_are_drawn_from_the_probabilities():
    source = SyntheticSource(dataclasses.replace(SyntheticConfig(), conversion=True))
    index = np.arange(0, 200_000, 10)
    labels, p = source.rows(index, dict.fromkeys(STREAMS, 0)).labels, source.probability(index)
    assert set(np.unique(labels)) == {0.0, 1.0}
    assert (labels[:, 1] <= labels[:, 0]).all()
    for task in (0, 1):
        bins = np.array_split(np.argsort(p[:, task]), 10)
        z = [(labels[b, task].sum() - p[b, task].sum()) / np.sqrt((p[b, task] * (1 - p[b, task])).sum()) for b in bins]
        assert np.abs(z).max() < 4
        whole = (labels[:, task] - p[:, task]).sum() / np.sqrt((p[:, task] * (1 - p[:, task])).sum())
        assert abs(whole) < 4
    assert 0.1 < p[:, 0].mean() < 0.25
    assert 0.01 < p[:, 1].mean() < 0.5 * p[:, 0].mean()


def test_the_click_task_is_the_same_with_and_without_conversion(dataset):
    both = open_dataset(dataclasses.replace(SMALL, conversion=True))
    index = np.arange(500)
    np.testing.assert_array_equal(both.source.probability(index)[:, :1], dataset.source.probability(index))
    np.testing.assert_array_equal(both.source.rows(index, ALL).labels[:, :1], dataset.source.rows(index, ALL).labels)
    assert both.p_train[0] == dataset.p_train[0]
    assert both.schema.tasks == ("click", "conversion")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_floor_is_the_mean_entropy_over_the_entropy_of_p_train(split):
    both = open_dataset(dataclasses.replace(SMALL, conversion=True))
    rows = both.split(split)
    for task in (0, 1):
        p = both.source.probability(np.array(rows))[:, task].tolist()
        entropy = sum(-x * math.log(x) - (1 - x) * math.log(1 - x) for x in p) / len(p)
        q = both.p_train[task]
        assert q == pytest.approx(np.mean(both.source.probability(np.arange(3000))[:, task]), rel=1e-12)
        expected = entropy / (-q * math.log(q) - (1 - q) * math.log(1 - q))
        assert both.floor(split, task) == pytest.approx(expected, rel=1e-12)


def test_labels_reach_the_floor_in_expectation_and_cruder_predictions_do_not(everyday):
    source, rows = everyday
    p, y = source.probability(rows.row)[:, 0], rows.labels[:, 0].astype(np.float64)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    error = np.sqrt(np.mean((loss - entropy) ** 2) / len(p))
    assert abs(loss.mean() - entropy.mean()) < 4 * error
    least = entropy.mean() / (-p.mean() * np.log(p.mean()) - (1 - p.mean()) * np.log(1 - p.mean()))
    assert 0.65 < least < 0.8

    def without(score: np.ndarray) -> float:
        """NE of the best prediction by the ranks of `score` in 40 equal bins."""
        q = np.empty_like(p)
        for part in np.array_split(np.argsort(score), 40):
            q[part] = p[part].mean()
        cross = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
        return float(cross / (-p.mean() * np.log(p.mean()) - (1 - p.mean()) * np.log(1 - p.mean())))

    law, column = source.law, dict(zip(CONTEXT, rows.categorical.T, strict=True))
    logit, context, daypart = law.click_logit(rows), law.context(rows), column["hour"] // 6
    crosses = law.segment_topic_daypart[column["segment"], column["topic"], daypart]
    crosses = crosses + law.device_price_weekday[column["device"], column["price"], column["weekday"]]
    crosses = crosses + law.country_brand_position[column["country"], column["brand"], column["position"] // 2]
    assert without(logit) < least + 0.01
    assert without(logit - crosses) > least + 0.04
    assert without(context) > least + 0.15


def test_p_train_of_a_large_set_is_cheap_and_documented():
    config = dataclasses.replace(SMALL, train_rows=40_000_000)
    large = open_dataset(config)
    index = np.arange(P_TRAIN_ROWS, dtype=np.int64) * 40_000_000 // P_TRAIN_ROWS
    assert large.p_train == (math.fsum(large.source.probability(index)[:, 0]) / P_TRAIN_ROWS,)
    rows = large.source.rows(np.array([0, 39_999_999]), ALL)
    assert rows.request_time_ms[1] - rows.request_time_ms[0] > 27.99 * DAY_MS


@pytest.mark.parametrize(
    ("table", "shape"),
    [
        ("segment_tag", (4, 48)),
        ("country_device", (6, DEVICES)),
        ("segment_topic_daypart", (4, 16, 4)),
        ("device_price_weekday", (DEVICES, 4, 7)),
        ("country_brand_position", (6, 32, POSITIONS // 2)),
        ("segment_device_price_daypart", (4, DEVICES, 4, 4)),
    ],
)
def test_a_cross_vanishes_when_averaged_over_any_factor(everyday, table, shape):
    values = getattr(everyday[0].law, table)
    assert values.shape == shape
    assert values.std() > 0.2
    for axis in range(values.ndim):
        np.testing.assert_allclose(values.mean(axis=axis), 0.0, atol=1e-12)


def test_crosses_of_order_three_say_nothing_to_pairs_of_factors(everyday):
    """On the rows themselves: a pair explains next to none of the cross's variance, the triple all of it."""
    source, rows = everyday
    column = dict(zip(CONTEXT, rows.categorical.T, strict=True))
    factors = (column["device"], column["price"], column["weekday"])
    value = source.law.device_price_weekday[factors]
    for left, right in itertools.combinations(factors, 2):
        cell = left * 100 + right
        _, cell = np.unique(cell, return_inverse=True)
        mean = np.bincount(cell, value) / np.bincount(cell)
        assert np.var(mean[cell]) < 0.02 * np.var(value)


# --- the ground it stands on ---


def test_hashing_is_splitmix64():
    """First outputs of splitmix64 seeded with 1234567, as its authors' C code prints them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert draw(np.uint64(1234567), np.arange(1, 5)).tolist() == expected


def test_streams_are_uniform_and_unlike_each_other():
    one, other = (uniform(draw(stream(0, name), np.arange(100_000))) for name in ("a", "b"))
    for values in (one, other):
        assert abs(values.mean() - 0.5) * np.sqrt(12 * len(values)) < 4
        counts = np.histogram(values, 64, (0, 1))[0]
        assert ((counts - len(values) / 64) ** 2 / (len(values) / 64)).sum() < 63 + 4 * np.sqrt(126)
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))


def test_zipf_lookup_gives_ranks_their_shares():
    shares = np.bincount(zipf_lookup(5, 1.0), minlength=5) / 65536
    np.testing.assert_allclose(shares, np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]) / (137 / 60), atol=2e-5)


def test_pure_cross_of_a_seed_is_its_own():
    assert not np.allclose(pure_cross(0, "x", (3, 4)), pure_cross(1, "x", (3, 4)))
    np.testing.assert_array_equal(pure_cross(0, "x", (3, 4)), pure_cross(0, "x", (3, 4)))


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_rows": 0}, r"data\.train_rows is 0; it must be at least 1"),
        ({"valid_rows": -1}, r"data\.valid_rows is -1; it must be at least 0"),
        ({"tags": 3}, r"data\.tags is 3; it must lie in \[4, 16384\]"),
        ({"segments": 1}, r"data\.segments is 1; it must lie in \[2, 16384\]"),
        ({"brands_per_topic": 33}, "'brands_per_topic' is 33; it must be at most 256 and at most 'brands', 32"),
        ({"topics": 20_000}, r"data\.topics is 20000; it must lie in \[2, 16384\]"),
        ({"drift_days": float("nan")}, r"data\.drift_days is nan"),
        ({"train_rows": 2**31}, "row numbers are int32"),
    ],
)
def test_an_impossible_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("row", [-1, 4200])
def test_a_row_that_is_not_there_is_an_error(dataset, row):
    for call in (dataset.source.probability, dataset.source.keys, lambda i: dataset.source.rows(i, ALL)):
        with pytest.raises(IndexError, match=f"row {row} is not in the synthetic data set; rows are 0 .. 4199"):
            call(np.array([0, row]))


def test_unknown_event_types_splits_and_sources_are_errors(dataset):
    with pytest.raises(KeyError, match="no event type 'like'"):
        dataset.source.history_lengths(np.arange(3), "like")
    with pytest.raises(KeyError, match="no split 'dev'"):
        dataset.floor("dev")
    empty = open_dataset(dataclasses.replace(SMALL, valid_rows=0))
    with pytest.raises(ValueError, match="split 'valid' has no rows"):
        empty.floor("valid")


def test_the_floor_of_other_data_is_not_known(dataset):
    class Other:
        schema = dataclasses.replace(dataset.schema, name="logs")

    assert dataclasses.replace(dataset, source=Other()).floor("test") is None
