import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data.sets import kuairand
from kunlun_jax.data.sets.kuairand import KuaiRandConfig
from tests.data.sets import fake_kuairand as fake

KINDS = ("click", "long_view", "like", "follow", "impression")
DEFAULT = KuaiRandConfig()


def _open(folder, log, config=DEFAULT):
    return kuairand.open_dataset(fake.write(folder / "raw", log), folder / "cache", config)


def _inputs(dataset, split):
    """Per row of a split everything that a model sees, as a list of comparable values; and the request times."""
    index = np.array(dataset.split(split))
    rows = dataset.source.rows(index, dict.fromkeys(KINDS, 10_000))
    inputs = []
    for i in range(len(index)):
        row = [rows.categorical[i].tolist(), rows.dense[i].tobytes()]
        ragged = rows.multi_valued["tags"]
        row.append(ragged.values[ragged.splits[i] : ragged.splits[i + 1]].tolist())
        for kind in KINDS:
            events = rows.events[kind]
            mine = slice(events.splits[i], events.splits[i + 1])
            row += [events.ids[mine].tolist(), events.dense[mine].tobytes(), events.time_ms[mine].tolist()]
            row.append(int(events.available[i]))
        inputs.append(row)
    return inputs, rows.request_time_ms


@pytest.fixture(scope="module")
def log():
    return fake.make_log()


@pytest.fixture(scope="module")
def dataset(log, tmp_path_factory):
    return _open(tmp_path_factory.mktemp("kuairand"), log)


def _column(dataset, split, name):
    rows = dataset.source.rows(np.array(dataset.split(split)), dict.fromkeys(KINDS, 1))
    if name in dataset.schema.dense:
        return rows.dense[:, dataset.schema.dense.index(name)]
    return rows.categorical[:, [feature.name for feature in dataset.schema.categorical].index(name)]


def _day(log):
    return (log["time_ms"] - fake.first_ms()) // fake.DAY_MS


def _tied_rows(log):
    """Rows that share their user and time with another row."""
    _, code, count = np.unique(
        np.stack([log["user_id"], log["time_ms"]]), axis=1, return_inverse=True, return_counts=True
    )
    return np.flatnonzero(count[code.ravel()] > 1)


def test_the_fake_log_has_ties_between_rows_of_a_user(log):
    assert len(_tied_rows(log)) > 20
    assert len(np.unique(log["time_ms"])) < len(log["time_ms"]) / 2


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.9, "tie_train", "tie_valid", "tie_test"])
def test_no_outcome_of_the_same_or_a_later_time_reaches_a_row(log, dataset, tmp_path, place):
    if isinstance(place, float):
        start = log["time_ms"][int(place * len(log["time_ms"]))]
    else:
        low, high = {"tie_train": (3, 7), "tie_valid": (8, 8), "tie_test": (9, 9)}[place]
        tied = [row for row in _tied_rows(log) if low <= _day(log)[row] <= high]
        start = log["time_ms"][tied[len(tied) // 2]]
    changed = {name: values.copy() for name, values in log.items()}
    now_or_later = log["time_ms"] >= start
    new = fake.draw_outcomes(np.random.default_rng(7), int(now_or_later.sum()))
    for name, values in new.items():
        # Flags are turned over, so that every row's change.
        flag = name not in ("play_time_ms", "profile_stay_time", "comment_stay_time")
        changed[name][now_or_later] = 1 - log[name][now_or_later] if flag else values
    other = _open(tmp_path, changed)
    unchanged = differing = 0
    for split in ("train", "valid", "test"):
        before, time_ms = _inputs(dataset, split)
        after, time_after = _inputs(other, split)
        np.testing.assert_array_equal(time_ms, time_after)
        for i in range(len(before)):
            if time_ms[i] <= start:
                assert before[i] == after[i], f"{split} row {i} at {time_ms[i]} saw an outcome from {start} on"
                unchanged += 1
            else:
                differing += before[i] != after[i]
    assert unchanged > 0
    # The test would not notice anything if outcomes did not reach later rows either.
    assert differing > 0.9 * (
        len(np.concatenate([list(dataset.split(s)) for s in ("train", "valid", "test")])) - unchanged
    )


def test_frozen_rows_see_nothing_from_the_users_first_row_of_the_split_on(log, dataset, tmp_path):
    of_day = _day(log) == 9
    users = log["user_id"][of_day]
    first = {user: log["time_ms"][of_day & (log["user_id"] == user)].min() for user in users}
    cutoff = np.array([first[user] for user in users])
    start = np.sort(np.unique(cutoff))[len(first) // 2]
    changed = {name: values.copy() for name, values in log.items()}
    for name in ("is_click", "long_view", "is_like", "is_follow"):
        changed[name] = np.where(log["time_ms"] >= start, 1 - log[name], log[name])
    other = _open(tmp_path, changed)
    before, time_ms = _inputs(dataset, "test_frozen")
    after, _ = _inputs(other, "test_frozen")
    # Entities are frozen at the cutoff of the row's user, so rows after `start` count, too, if their user came before.
    cut_before = cutoff <= start
    assert (cut_before & (time_ms > start)).sum() > 10
    assert all(before[i] == after[i] for i in np.flatnonzero(cut_before))
    assert sum(before[i] != after[i] for i in np.flatnonzero(~cut_before)) > 0
    live, _ = _inputs(dataset, "test")
    assert sum(a != b for a, b in zip(live, before, strict=True)) > len(users) / 2


@pytest.mark.parametrize("split", ["valid", "test", "valid_frozen", "test_frozen"])
def test_counts_and_histories_are_cut_where_they_should_be(log, dataset, split):
    day = 8 if split.startswith("valid") else 9
    rows = np.flatnonzero(_day(log) == day)
    index = np.array(dataset.split(split))
    lengths = {kind: dataset.source.history_lengths(index, kind) for kind in KINDS}
    keys = dataset.source.keys(index)
    features = {name: _column(dataset, split, name) for name in ("user_count", "video_count", "user_gap_seconds")}
    today = _column(dataset, split, "user_today_count")
    np.testing.assert_array_equal(keys["time_ms"], log["time_ms"][rows])
    for i, row in enumerate(rows):
        user, video, time_ms = log["user_id"][row], log["video_id"][row], log["time_ms"][row]
        assert (keys["user_id"][i], keys["video_id"][i]) == (user, video)
        as_of = time_ms
        if split.endswith("frozen"):
            as_of = min(log["time_ms"][j] for j in rows if log["user_id"][j] == user)
        mine = (log["user_id"] == user) & (log["time_ms"] < as_of)
        assert lengths["impression"][i] == mine.sum()
        for kind, mark in (
            ("click", "is_click"),
            ("long_view", "long_view"),
            ("like", "is_like"),
            ("follow", "is_follow"),
        ):
            assert lengths[kind][i] == (mine & (log[mark] == 1)).sum()
        assert features["user_count"][i] == pytest.approx(np.log1p(mine.sum()) / 5)
        seen = (log["video_id"] == video) & (log["time_ms"] < as_of)
        assert features["video_count"][i] == pytest.approx(np.log1p(seen.sum()) / 5)
        assert today[i] == pytest.approx(np.log1p((mine & (_day(log) == day)).sum()) / 5)
        gap = np.log1p((time_ms - log["time_ms"][mine].max()) / 1000) / 10 if mine.any() else 2.0
        assert features["user_gap_seconds"][i] == pytest.approx(gap)


def test_features_join_ids_of_the_files(log, dataset):
    rows = np.flatnonzero(_day(log) <= 7)
    time_ms, video = log["time_ms"][rows], log["video_id"][rows]
    unknown_user, unknown_video = log["user_id"][rows] == fake.USERS - 1, video == fake.VIDEOS - 1
    assert unknown_user.any()
    assert unknown_video.any()
    np.testing.assert_array_equal(
        _column(dataset, "train", "user"), np.where(unknown_user, 0, log["user_id"][rows] + 1)
    )
    np.testing.assert_array_equal(_column(dataset, "train", "video"), np.where(unknown_video, 0, video + 1))
    author = np.where(unknown_video, 0, video % fake.AUTHORS + 1)
    np.testing.assert_array_equal(_column(dataset, "train", "author"), author)
    hour = (time_ms - fake.first_ms()) // 3_600_000 % 24
    np.testing.assert_array_equal(_column(dataset, "train", "hour"), hour)
    seconds = log["duration_ms"][rows] / 1000
    bucket = [0 if s == 0 else 1 + sum(edge <= s for edge in kuairand.DURATION_SECONDS) for s in seconds]
    np.testing.assert_array_equal(_column(dataset, "train", "duration"), bucket)
    tags = dataset.source.rows(np.array(dataset.split("train")), dict.fromkeys(KINDS, 1)).multi_valued["tags"]
    vocabulary = {"12": 1, "3": 2, "39": 3, "62": 4}
    first = _column(dataset, "train", "tag")
    for i in range(len(rows)):
        text = "" if unknown_video[i] else ["", "3", "12,62", "3,12,39"][video[i] % 4]
        wanted = [vocabulary[tag] for tag in text.split(",") if tag]
        assert tags.values[tags.splits[i] : tags.splits[i + 1]].tolist() == wanted
        assert first[i] == (wanted[0] if wanted else 0)
    np.testing.assert_array_equal(_column(dataset, "train", "user_active_degree")[unknown_user], 0)


def test_schema_and_the_meaning_of_event_fields(log, dataset):
    schema = dataset.schema
    assert schema.tasks == ("is_click",)
    assert schema.keys == ("user_id", "video_id", "time_ms")
    assert schema.group == "user_id"
    names = {feature.name for feature in schema.categorical + schema.multi_valued} | set(schema.dense)
    assert not names & set(fake.OUTCOMES)
    assert names >= {*kuairand.USER_CATEGORIES, *kuairand.USER_COUNTS, *kuairand.VIDEO_CATEGORIES, "video_duration"}
    assert [event.name for event in schema.events] == list(KINDS)
    # The newest impression of the last test row, field by field.
    row = np.flatnonzero(_day(log) == 9)[-1]
    mine = (log["user_id"] == log["user_id"][row]) & (log["time_ms"] < log["time_ms"][row])
    past = np.flatnonzero(mine)[-1]
    events = dataset.source.rows(np.array([dataset.split("test")[-1]]), dict.fromkeys(KINDS, 1)).events["impression"]
    fields = dict(zip([f.name for f in schema.event("impression").categorical], events.ids[0].tolist(), strict=True))
    assert events.time_ms[0] == log["time_ms"][past]
    assert (fields["is_click"], fields["long_view"]) == (log["is_click"][past], log["long_view"][past])
    assert fields["tab"] == log["tab"][past]
    video = log["video_id"][past]
    assert fields["video"] == (0 if video == fake.VIDEOS - 1 else video + 1)
    duration = log["duration_ms"][past]
    ratio = min(log["play_time_ms"][past] / duration, 5) if duration else 0
    assert events.dense[0, 0] == pytest.approx(ratio)


def test_exact_duplicates_are_dropped_and_counted(log, dataset, tmp_path):
    twice = np.sort(np.append(np.arange(fake.ROWS), [5, 5, 700, fake.ROWS - 1]))
    root = fake.write(tmp_path / "raw", {name: values[twice] for name, values in log.items()})
    report = kuairand.convert(root, tmp_path / "out")
    assert (report.rows_read, report.duplicates) == (fake.ROWS + 4, 4)
    assert "904 rows read, 4 exact duplicates dropped" in str(report)
    assert report.events["impression"] == fake.ROWS
    assert report.splits == {name: len(rows) for name, rows in dataset.splits.items()}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["duplicates"] == 4


def test_rows_that_differ_in_an_outcome_alone_are_both_kept(log, tmp_path):
    both = {name: np.append(values, values[-1]) for name, values in log.items()}
    both["is_click"][-1] = 1 - both["is_click"][-1]
    report = kuairand.convert(fake.write(tmp_path / "raw", both), tmp_path / "out")
    assert report.duplicates == 0
    assert report.events["impression"] == fake.ROWS + 1


def test_days_are_flags_and_days_of_china(log, tmp_path):
    config = KuaiRandConfig(
        train_days=("2022-04-26", "2022-04-28"), valid_days=("2022-04-30", "2022-05-01"), test_days=("2022-05-03",) * 2,
        frozen=False,
    )  # fmt: skip
    report = kuairand.convert(fake.write(tmp_path / "raw", log), tmp_path / "out", config)
    day = _day(log)
    wanted = {"train": (day >= 1) & (day <= 3), "valid": (day >= 5) & (day <= 6), "test": day == 8}
    assert report.splits == {name: int(rows.sum()) for name, rows in wanted.items()}
    for name, rows in wanted.items():
        table = pq.read_table(tmp_path / "out" / "examples" / name)
        np.testing.assert_array_equal(table["time_ms"].to_numpy(), log["time_ms"][rows])
        np.testing.assert_array_equal(table["is_click"].to_numpy(), log["is_click"][rows])
        assert report.positive_rate[name] == pytest.approx(log["is_click"][rows].mean())


def test_unsorted_logs_in_two_files_and_the_random_log(log, dataset, tmp_path):
    root = tmp_path / "raw"
    fake.write(root, log)
    folder = root / "KuaiRand-Pure" / "data"
    early = np.flatnonzero(_day(log) < 4)[::-1]
    late = np.flatnonzero(_day(log) >= 4)
    fake.write_log(folder / kuairand.STANDARD_LOGS[0], {name: values[early] for name, values in log.items()})
    fake.write_log(folder / kuairand.STANDARD_LOGS[1], {name: values[late] for name, values in log.items()})
    shown = {name: values[:50] for name, values in fake.make_log(seed=3).items()}
    shown["is_rand"] = np.ones(50, np.int64)
    fake.write_log(folder / kuairand.RANDOM_LOGS[0], shown)
    report = kuairand.convert(folder, tmp_path / "out")
    assert report.splits == {name: len(rows) for name, rows in dataset.splits.items()}
    time_ms = pq.read_table(tmp_path / "out" / "examples" / "train")["time_ms"].to_numpy()
    np.testing.assert_array_equal(time_ms, log["time_ms"][_day(log) <= 7])
    report = kuairand.convert(folder.parent, tmp_path / "with_random", KuaiRandConfig(random_log="history"))
    assert report.splits == {name: len(rows) for name, rows in dataset.splits.items()}
    assert report.events["impression"] == fake.ROWS + 50


def test_rates_can_be_left_out(log, tmp_path):
    kuairand.convert(fake.write(tmp_path / "raw", log), tmp_path / "out", KuaiRandConfig(rates=False))
    dense = json.loads((tmp_path / "out" / "schema.json").read_text())["dense"]
    assert "duration_seconds" in dense
    assert not [name for name in dense if name.endswith(("_click", "_count", "_gap_seconds"))]


def test_converted_once_and_anew_when_anything_changes(log, tmp_path, capsys):
    root = fake.write(tmp_path / "raw", log)
    first = kuairand.open_dataset(root, tmp_path / "cache")
    assert "0 exact duplicates dropped" in capsys.readouterr().out
    again = kuairand.open_dataset(root / "KuaiRand-Pure", tmp_path / "cache")
    assert "duplicates" not in capsys.readouterr().out
    assert again.fingerprint == first.fingerprint
    other = kuairand.open_dataset(root, tmp_path / "cache", KuaiRandConfig(smoothing=3.0))
    assert other.fingerprint != first.fingerprint
    log = {name: values.copy() for name, values in log.items()}
    log["is_click"][3] = 1 - log["is_click"][3]
    assert _open(tmp_path, log).fingerprint not in (first.fingerprint, other.fingerprint)
    assert len(list((tmp_path / "cache").glob("kuairand-*"))) == 3


def test_a_failed_conversion_leaves_nothing_behind(log, tmp_path):
    config = KuaiRandConfig(test_days=("2022-06-01", "2022-06-02"))
    with pytest.raises(ValueError, match=r"test_days .* hold no row .*2022-04-25 to 2022-05-04"):
        _open(tmp_path, log, config)
    assert list((tmp_path / "cache").glob("*/")) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"train_days": ("2022-04-25", "2022-05-03")},
            "valid_days starts on 2022-05-03; it must start after train_days",
        ),
        ({"test_days": ("2022-05-05", "2022-05-04")}, "its last day must not be before its first"),
        ({"valid_days": ("03.05.2022", "2022-05-03")}, r"valid_days holds '03\.05\.2022'; it must be a date"),
        ({"smoothing": 0.0}, r"smoothing is 0\.0"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        KuaiRandConfig(**flags)


def _replace(name, old, new, count=1):
    def damage(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, count))

    return damage


def _cut(name):
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:-3])


def _first_line_only(name):
    return lambda folder: (folder / name).write_text((folder / name).read_text().splitlines()[0] + "\n")


def _set(column, value):
    def damage(folder):
        log = fake.make_log()
        log[column][17] = value
        fake.write_log(folder / fake.LOG, log)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / fake.LOG).unlink(), "holds a log; expected user_features_pure.csv"),
        (lambda folder: (folder / kuairand.USER_FILE).unlink(), "user_features_pure.csv: no such file"),
        (lambda folder: (folder / kuairand.VIDEO_FILE).write_text(""), "video_features_basic_pure.csv: is empty"),
        (_cut(fake.LOG), f"{fake.LOG}: does not end with a line break"),
        (_first_line_only(fake.LOG), f"{fake.LOG}: holds no rows"),
        (_replace(fake.LOG, "is_click", "clicked"), f"{fake.LOG}: its first line lacks the columns .'is_click'"),
        (_replace(fake.LOG, ",0,1,", ",0,oops,"), f"{fake.LOG}: is not the CSV expected"),
        (_replace(fake.LOG, ",0,1,", ",0,"), f"{fake.LOG}: is not the CSV expected"),
        (_replace(fake.LOG, ",0,1,", ",0,,"), f"{fake.LOG}: column '.*' is empty in data row"),
        (_set("is_click", 2), "column 'is_click' holds 2 in data row 18; expected 0 .. 1"),
        (_set("time_ms", 1650812741), "column 'time_ms' holds 1650812741 in data row 18"),
        (_set("play_time_ms", -1), "column 'play_time_ms' holds -1 in data row 18"),
        (_set("tab", 15), "column 'tab' holds 15 in data row 18; expected 0 .. 14"),
        (_replace(kuairand.USER_FILE, "\n5,", "\n4,"), "column 'user_id' holds 4 twice"),
        (_replace(kuairand.VIDEO_FILE, "2022-04-10", "yesterday"), "video_features_basic_pure.csv: is not the CSV"),
    ],
)
def test_damaged_files_are_named(log, tmp_path, damage, message):
    root = fake.write(tmp_path / "raw", log)
    damage(root / "KuaiRand-Pure" / "data")
    with pytest.raises(ValueError, match=message + ".*must be fetched from its authors"):
        kuairand.convert(root, tmp_path / "out")


def test_the_real_data(shared_data, tmp_path):
    if not (shared_data / "KuaiRand-Pure").is_dir():
        pytest.skip(f"no KuaiRand-Pure in {shared_data}")
    report = kuairand.convert(shared_data, tmp_path / "out")
    assert (report.rows_read, report.duplicates) == (171_671, 4_390)
    assert report.splits == {
        "train": 131_510, "valid": 18_563, "valid_frozen": 18_563, "test": 17_067, "test_frozen": 17_067,
    }  # fmt: skip
    assert report.events == {"click": 75_453, "long_view": 53_219, "like": 2_964, "follow": 218, "impression": 167_281}
