import numpy as np
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data.sets import movielens
from kunlun_jax.data.sets.movielens import MovieLensConfig
from tests.data.sets import fake_movielens as fake

KINDS = ("like", "neutral", "dislike")
LAST = MovieLensConfig(split="last")


def _open(folder, ratings, config):
    return movielens.open_dataset(fake.write(folder / "raw", ratings), folder / "cache", config)


@pytest.fixture(scope="module")
def ratings():
    return fake.make_ratings()


@pytest.fixture(scope="module", params=["random", "last"])
def opened(ratings, tmp_path_factory, request):
    config = MovieLensConfig(split=request.param)
    return config, _open(tmp_path_factory.mktemp("movielens"), ratings, config)


def _inputs(dataset, split):
    """Per row of a split everything that a model sees, by (user, movie); and the request time."""
    index = np.array(dataset.split(split))
    rows, keys = dataset.source.rows(index, dict.fromkeys(KINDS, 10_000)), dataset.source.keys(index)
    inputs = {}
    for i in range(len(index)):
        ragged = rows.multi_valued["genres"]
        row = [rows.categorical[i].tolist(), rows.dense[i].tobytes()]
        row.append(ragged.values[ragged.splits[i] : ragged.splits[i + 1]].tolist())
        for kind in KINDS:
            events = rows.events[kind]
            mine = slice(events.splits[i], events.splits[i + 1])
            row += [events.ids[mine].tolist(), events.dense[mine].tobytes(), events.time_ms[mine].tolist()]
        inputs[int(keys["user_id"][i]), int(keys["movie_id"][i])] = row, int(rows.request_time_ms[i])
    return inputs


@pytest.mark.parametrize("second", [5_000, 25_000, 46_000])
def test_no_rating_of_the_same_or_a_later_second_reaches_a_row(ratings, opened, tmp_path, second):
    config, dataset = opened
    start = fake.FIRST_SECOND + second
    assert (ratings["timestamp"] == start).sum() > 5
    late = ratings["timestamp"] >= start
    # 1, 2, 4, 5 change sides and 3 stays, since ratings of 3 are no examples of the split random.
    changed = ratings | {"rating": np.where(late, 6 - ratings["rating"], ratings["rating"])}
    other = _open(tmp_path, changed, config)
    unchanged = differing = later = 0
    for split in ("train", "valid", "test"):
        before, after = _inputs(dataset, split), _inputs(other, split)
        assert before.keys() == after.keys()
        for key, (inputs, time_ms) in before.items():
            if time_ms <= start * 1000:
                assert inputs == after[key][0], f"{split}, rating of {key} saw a rating from {start} on"
                unchanged += 1
            else:
                differing += inputs != after[key][0]
                later += 1
    assert unchanged > 0
    assert differing > 0.8 * later


def test_random_split_deals_ratings_other_than_3(ratings, tmp_path):
    root = fake.write(tmp_path / "raw", ratings)
    first = movielens.convert(root, tmp_path / "first")
    examples = int((ratings["rating"] != 3).sum())
    assert sum(first.splits.values()) == examples
    assert list(first.splits) == ["train", "valid", "test"]
    assert first.splits["train"] == examples * 8 // 10
    assert abs(first.splits["valid"] - first.splits["test"]) <= 1
    assert first.events == {
        "like": int((ratings["rating"] >= 4).sum()),
        "neutral": int((ratings["rating"] == 3).sum()),
        "dislike": int((ratings["rating"] <= 2).sum()),
    }
    keys = [_keys(tmp_path / "first", split) for split in first.splits]
    assert len(set.union(*keys)) == examples
    movielens.convert(root, tmp_path / "again")
    assert _keys(tmp_path / "again", "test") == keys[2]
    movielens.convert(root, tmp_path / "other", MovieLensConfig(seed=1))
    assert _keys(tmp_path / "other", "test") != keys[2]


def _keys(out, split):
    table = pq.read_table(out / "examples" / split)
    return set(zip(table["user_id"].to_pylist(), table["movie_id"].to_pylist(), strict=True))


def test_last_split_takes_the_end_of_every_user(ratings, tmp_path):
    movielens.convert(fake.write(tmp_path / "raw", ratings), tmp_path / "out", LAST)
    keys = {split: _keys(tmp_path / "out", split) for split in ("train", "valid", "test")}
    for user in np.unique(ratings["user_id"]):
        mine = np.flatnonzero(ratings["user_id"] == user)
        mine = mine[np.argsort(ratings["timestamp"][mine], kind="stable")]
        tenth = len(mine) // 10
        parts = (
            mine[: len(mine) - 2 * tenth],
            mine[len(mine) - 2 * tenth : len(mine) - tenth],
            mine[len(mine) - tenth :],
        )
        for split, rows in zip(keys, parts, strict=True):
            wanted = {(int(user), int(movie)) for movie in ratings["movie_id"][rows]}
            assert {key for key in keys[split] if key[0] == user} == wanted


@pytest.mark.parametrize("split", ["test", "test_frozen"])
def test_counts_and_histories_are_cut_where_they_should_be(ratings, tmp_path, split):
    dataset = _open(tmp_path, ratings, LAST)
    index = np.array(dataset.split(split))
    keys = dataset.source.keys(index)
    rows = dataset.source.rows(index, dict.fromkeys(KINDS, 1))
    count = {name: rows.dense[:, dataset.schema.dense.index(f"{name}_count")] for name in ("user", "movie")}
    lengths = {kind: dataset.source.history_lengths(index, kind) for kind in KINDS}
    for i in range(len(index)):
        user, movie, as_of = (keys[name][i] for name in ("user_id", "movie_id", "timestamp"))
        if split == "test_frozen":
            as_of = keys["timestamp"][keys["user_id"] == user].min()
        earlier = ratings["timestamp"] < as_of
        mine = earlier & (ratings["user_id"] == user)
        assert count["user"][i] == pytest.approx(np.log1p(mine.sum()) / 5)
        assert count["movie"][i] == pytest.approx(np.log1p((earlier & (ratings["movie_id"] == movie)).sum()) / 5)
        for kind, (low, high) in movielens.EVENTS.items():
            wanted = mine & (ratings["rating"] >= low) & (ratings["rating"] <= high)
            assert lengths[kind][i] == wanted.sum()


def test_features_and_labels(ratings, opened):
    _, dataset = opened
    index = np.array(dataset.split("train"))
    rows, keys = dataset.source.rows(index, dict.fromkeys(KINDS, 1)), dataset.source.keys(index)
    column = {f.name: rows.categorical[:, i] for i, f in enumerate(dataset.schema.categorical)}
    stars = {(u, m): r for u, m, r in zip(*(ratings[n] for n in ("user_id", "movie_id", "rating")), strict=True)}
    genres = rows.multi_valued["genres"]
    words = ["", "Action", "Comedy", "Drama", "Sci-Fi", "Thriller"]
    sets = ["", *sorted(fake.GENRES)]
    unknown = {"user": 0, "movie": 0}
    for i in range(len(index)):
        user, movie, second = (int(keys[name][i]) for name in ("user_id", "movie_id", "timestamp"))
        assert rows.labels[i, 0] == (stars[user, movie] >= 4)
        assert rows.request_time_ms[i] == second * 1000
        assert column["hour"][i] == second // 3600 % 24
        unknown["user"] += user == fake.USERS
        unknown["movie"] += movie == fake.MOVIES
        assert column["user"][i] == user % fake.USERS
        assert column["gender"][i] == (0 if user == fake.USERS else 1 + user % 2)
        text = "" if movie == fake.MOVIES else fake.GENRES[movie % 4]
        mine = genres.values[genres.splits[i] : genres.splits[i + 1]]
        assert [words[genre] for genre in mine] == (text.split("|") if text else [])
        assert words[column["genre"][i]] == text.split("|")[0]
        assert sets[column["genre_set"][i]] == text
        bucket = 0 if movie == fake.MOVIES else 1 + sum(first <= fake.year(movie) for first in movielens.YEARS)
        assert column["year"][i] == bucket
    assert min(unknown.values()) > 0


def test_duplicates_are_dropped_and_counted(ratings, tmp_path):
    twice = np.append(np.arange(fake.ROWS), [3, 3, 600])
    root = fake.write(tmp_path / "raw", {name: values[twice] for name, values in ratings.items()})
    report = movielens.convert(root, tmp_path / "out", LAST)
    assert (report.rows_read, report.duplicates) == (fake.ROWS + 3, 3)
    assert sum(report.splits[split] for split in ("train", "valid", "test")) == fake.ROWS


def test_rates_and_frozen_splits_can_be_left_out(ratings, tmp_path):
    config = MovieLensConfig(split="last", rates=False, frozen=False)
    dataset = _open(tmp_path, ratings, config)
    assert dataset.schema.dense == ("release_year",)
    assert set(dataset.splits) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"split": "first"}, "split is 'first'; use 'random' or 'last'"),
        ({"seed": -1}, "seed is -1"),
        ({"smoothing": -2.0}, r"smoothing is -2\.0"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        MovieLensConfig(**flags)


def _edit(name, change):
    def damage(folder):
        text = (folder / name).read_text("latin-1")
        changed = change(text)
        assert changed != text
        (folder / name).write_text(changed, encoding="latin-1")

    return damage


def _line(name, number, line):
    return _edit(name, lambda text: "".join([*text.splitlines(True)[:number], line, *text.splitlines(True)[number:]]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "ratings.dat").unlink(), "holds ratings.dat; expected the files"),
        (lambda folder: (folder / "movies.dat").unlink(), "movies.dat: no such file"),
        (lambda folder: (folder / "users.dat").write_text(""), "users.dat: is empty"),
        (_edit("ratings.dat", lambda text: text[:-4]), "ratings.dat: does not end with a line break"),
        (_edit("ratings.dat", lambda text: text.replace("::", ",")), "ratings.dat: is not lines of user_id::movie_id"),
        (_line("ratings.dat", 9, "1::2::five::978300760\n"), "ratings.dat: is not lines of user_id::movie_id"),
        (_line("ratings.dat", 9, "1::2::6::978300760\n"), r"line 10 holds 6 as rating; expected 1 \.\. 5"),
        (_line("ratings.dat", 9, "1::2::::978300760\n"), "line 10 holds None as rating"),
        (_line("ratings.dat", 9, "1:x:2::5::978300760\n"), "line 10 holds 'x' as gap1; expected '::' between"),
        (_line("ratings.dat", 9, "1::2::5::978300760000\n"), "line 10 holds 978300760000 as timestamp"),
        (_line("movies.dat", 4, "77::No year::Drama\n"), "title 'No year' does not end with its year"),
        (_line("movies.dat", 4, "77::Two fields (1999)\n"), "movies.dat: line 5 is .77::Two fields"),
        (_line("users.dat", 4, "2::F::1::10::48067\n"), "users.dat: holds user_id 2 twice"),
    ],
)
def test_damaged_files_are_named(ratings, tmp_path, damage, message):
    root = fake.write(tmp_path / "raw", ratings)
    damage(root / "ml-1m")
    with pytest.raises(ValueError, match=message + ".*must be fetched from its authors"):
        movielens.convert(root, tmp_path / "out")


def test_the_real_data(shared_data, tmp_path):
    if not (shared_data / "ml-1m").is_dir():
        pytest.skip(f"no ml-1m in {shared_data}")
    report = movielens.convert(shared_data, tmp_path / "out", MovieLensConfig(rates=False))
    assert (report.rows_read, report.duplicates) == (1_000_209, 0)
    assert report.splits == {"train": 591_209, "valid": 73_901, "test": 73_902}
    assert report.events == {"like": 575_281, "neutral": 261_197, "dislike": 163_731}
