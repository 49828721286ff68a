"""MovieLens-1M (Harper and Konstan, TiiS 2015, doi 10.1145/2827872): the official files as a data set for liking.

A row is a rating; the label `liked` is 1 for 4 and 5 stars. Ratings are events of three types: like (4 and 5 stars),
neutral (3) and dislike (1 and 2). There are two splits:

- ``random``: ratings of 3 stars are not examples; the others are dealt 8:1:1 to train, valid and test by a seed.
- ``last``: all ratings are examples; the last 10% of each user's are test, the 10% before them valid. With
  ``valid_frozen`` and ``test_frozen``, whose histories and rates end before the user's first row of the split.

Times are coarse: they count seconds, and 77% of the ratings share theirs with another of the same user. Histories and
rates hold what is strictly earlier, so ratings in the same second do not see each other; which of them counts as last
in the split ``last`` is decided by the order of the file. In the split ``random`` a training row may come after a test
row in time and then has it in its history, as with every random split; no row has its own or a later rating in it.

Events have single-valued fields: a movie's genres go into them as the first genre and as the id of the whole set of
genres (301 sets, so nothing is lost). The context has the genres as a multi-valued feature as well.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv

from kunlun_jax.data.dataset import Dataset, DatasetConfig
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.data.sets.official import (
    Conversion,
    Lists,
    Official,
    check_whole,
    distinct_rows,
    index_of,
    open_official,
    padded_vocabulary,
    split_lists,
    vocabulary,
    write_prepared,
)
from kunlun_jax.data.sets.rates import UNIT, Rate, RunningRates, first_times, log_gap, pair
from kunlun_jax.ranges import above, check, within

VERSION = 1
"""Part of the cache's fingerprint: raise it whenever the files written for the same input change."""

LABEL = "liked"
KEYS = ("user_id", "movie_id", "timestamp")
EVENTS = {"like": (4, 5), "neutral": (3, 3), "dislike": (1, 2)}

OFFICIAL = Official("MovieLens-1M", "https://grouplens.org/datasets/movielens/1m/")
FILES = ("ratings.dat", "movies.dat", "users.dat")

YEARS = (1930, 1940, 1950, 1960, 1965, 1970, 1975, 1980, 1983, 1986, 1988, *range(1990, 2001))
"""First years of the release buckets; bucket 1 is older than all of them, bucket 0 unknown."""
RECENT_ROWS = 10

_HOUR_SECONDS = 3600
_DAY_SECONDS = 24 * _HOUR_SECONDS


@dataclasses.dataclass(frozen=True)
class MovieLensConfig(DatasetConfig):
    """How MovieLens-1M becomes a data set."""

    split: Literal["random", "last"] = "random"
    """random: 3 stars dropped as examples, dealt 8:1:1. last: last 10% of each user test, 10% before it valid."""
    seed: int = 0
    """Deals the examples of the split random."""
    rates: bool = True
    """Provide running like, dislike and rating averages of users, movies, genres and pairs as dense features."""
    smoothing: float = 10.0
    """Ratings that the prior of a running rate is worth."""
    frozen: bool = True
    """With the split last, also write valid_frozen and test_frozen: cut before the user's first row of the split."""

    signs = ("ratings.dat", "ml-1m/ratings.dat")
    public = True

    RANGES: ClassVar = {"seed": within(0, 2**31 - 1), "smoothing": above(0)}

    def __post_init__(self):
        check(self, "data")
        if self.split not in ("random", "last"):
            raise ValueError(f"split is {self.split!r}; use 'random' or 'last'")

    def open(self, root: Path | None, cache: Path | None) -> Dataset:
        """`open_dataset`."""
        assert root is not None
        return open_dataset(root, cache, self)


def open_dataset(root: Path, cache: Path | None = None, config: MovieLensConfig = MovieLensConfig()) -> Dataset:
    """The data set of the official files under `root`, converted into the cache folder unless already there.

    Args:
      root: the folder ml-1m or the folder that contains it.
      cache: folder for prepared data, by default `kunlun_jax.data.cache.default_cache`.
      config: which split, and which features.

    Raises:
      ValueError: a file is missing or damaged; the message names it and where to fetch it.
    """
    folder = _find(Path(root))
    inputs = [folder / name for name in FILES]
    return open_official(cache, "movielens", VERSION, inputs, config, lambda out: convert(folder, out, config))


def convert(root: Path, out: Path, config: MovieLensConfig = MovieLensConfig()) -> Conversion:
    """Converts the official files under `root` into the prepared layout in the new folder `out`; see `open_dataset`."""
    folder = _find(Path(root))
    users, movies = _Users.read(folder / "users.dat"), _Movies.read(folder / "movies.dat")
    ratings, rows_read = _read_ratings(folder / "ratings.dat")
    table = _Examples(ratings, users, movies, config)
    chosen = _random_split(ratings, config.seed) if config.split == "random" else _last_split(ratings)
    splits: dict[str, pa.Table] = {}
    for split, rows in chosen.items():
        splits[split] = table.rows(rows, table.time_ms[rows])
        if config.frozen and config.split == "last" and split != "train":
            cutoff = first_times(ratings["user_id"][rows], table.time_ms[rows])
            splits[f"{split}_frozen"] = table.rows(rows, cutoff).append_column("history_time_ms", pa.array(cutoff))
    events = table.events()
    report = Conversion(
        name="movielens",
        rows_read=rows_read,
        duplicates=rows_read - len(ratings["rating"]),
        splits={name: rows.num_rows for name, rows in splits.items()},
        positive_rate={name: float(np.mean(rows[LABEL].to_numpy())) for name, rows in splits.items()},
        events={name: rows.num_rows for name, rows in events.items()},
    )
    write_prepared(out, table.schema(), splits, events, report)
    return report


def _random_split(ratings: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    examples = np.flatnonzero(ratings["rating"] != 3)
    dealt = np.random.Generator(np.random.PCG64(seed)).permutation(examples)
    train, valid, test = np.split(dealt, [len(dealt) * 8 // 10, len(dealt) * 9 // 10])
    return {"train": np.sort(train), "valid": np.sort(valid), "test": np.sort(test)}


def _last_split(ratings: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    user = ratings["user_id"]
    order = np.argsort(user, kind="stable")  # ratings are already in order of time
    _, start, count = np.unique(user[order], return_index=True, return_counts=True)
    from_end = np.empty(len(user), np.int64)  # 0 for a user's last rating
    from_end[order] = np.repeat(start + count, count) - 1 - np.arange(len(user))
    tenth = np.empty(len(user), np.int64)
    tenth[order] = np.repeat(count // 10, count)
    test = from_end < tenth
    valid = (from_end < 2 * tenth) & ~test
    return {"train": np.flatnonzero(~test & ~valid), "valid": np.flatnonzero(valid), "test": np.flatnonzero(test)}


@dataclasses.dataclass(frozen=True)
class _Users:
    """The user file; row 0 stands for users that are not in it."""

    known: np.ndarray  # int64 [users], sorted
    categories: dict[str, tuple[np.ndarray, int]]  # column -> ids [users + 1], number of ids

    @staticmethod
    def read(path: Path) -> "_Users":
        columns = ("user_id", "gender", "age", "occupation", "zip_code")
        lines, known = _read_lines(path, columns)
        texts = {name: [line[i] for line in lines] for i, name in enumerate(columns)}
        del texts["user_id"]
        texts["zip_prefix"] = [zip_code[:3] for zip_code in texts.pop("zip_code")]
        categories = {name: padded_vocabulary(pa.array(values, pa.string())) for name, values in texts.items()}
        return _Users(known, categories)


@dataclasses.dataclass(frozen=True)
class _Movies:
    """The movie file; row 0 stands for movies that are not in it."""

    known: np.ndarray  # int64 [movies], sorted
    genres: Lists
    genre: np.ndarray  # int64 [movies + 1], the first one
    genre_size: int
    genre_set: np.ndarray  # int64 [movies + 1]
    genre_set_size: int
    year: np.ndarray  # int64 [movies + 1], 0 where unknown

    @staticmethod
    def read(path: Path) -> "_Movies":
        lines, known = _read_lines(path, ("movie_id", "title", "genres"))
        texts = pa.array([line[2] or None for line in lines], pa.string())
        genres, genre, genre_size = split_lists(texts, "|")
        genre_set, genre_set_size = vocabulary(texts)
        years = [0]
        for line in lines:  # a title ends with its year: Toy Story (1995)
            year = line[1].rstrip()[-5:-1]
            if not (year.isdecimal() and line[1].rstrip().endswith(")")):
                raise OFFICIAL.error(path, f"title {line[1]!r} does not end with its year, as in 'Toy Story (1995)'")
            years.append(int(year))
        return _Movies(
            known=known,
            genres=genres,
            genre=np.append(0, genre),
            genre_size=genre_size,
            genre_set=np.append(0, genre_set),
            genre_set_size=genre_set_size,
            year=np.array(years),
        )


class _Examples:
    """Columns of examples and events, and the schema they follow."""

    def __init__(self, ratings: dict[str, np.ndarray], users: _Users, movies: _Movies, config: MovieLensConfig):
        self._ratings, self._users, self._movies = ratings, users, movies
        self.time_ms = ratings["timestamp"] * 1000
        self._user = index_of(ratings["user_id"], users.known)
        self._movie = index_of(ratings["movie_id"], movies.known)
        year = movies.year[self._movie]
        bucket = np.where(year > 0, np.searchsorted(YEARS, year, side="right") + 1, 0)
        self._shared = {
            "movie": (self._movie, len(movies.known) + 1),
            "genre": (movies.genre[self._movie], movies.genre_size),
            "genre_set": (movies.genre_set[self._movie], movies.genre_set_size),
            "year": (bucket, len(YEARS) + 2),
        }
        seconds = ratings["timestamp"]
        # Users' time zones are not known: UTC. 1970-01-01 was a Thursday, weekday 0 is Monday.
        self._clock = {
            "hour": (seconds % _DAY_SECONDS // _HOUR_SECONDS, 24),
            "weekday": ((seconds // _DAY_SECONDS + 3) % 7, 7),
        }
        self._rates = self._running_rates(config.smoothing) if config.rates else None
        self._dense_names = tuple(self._dense(np.zeros(0, np.int64), np.zeros(0, np.int64)))

    def _running_rates(self, smoothing: float) -> RunningRates:
        stars = self._ratings["rating"]
        outcomes = {
            "like": (stars >= 4) * UNIT,
            "dislike": (stars <= 2) * UNIT,
            "rating": (stars - 1) * UNIT // 4,
        }
        # The official ids, because the ratings distinguish even users and movies that the other files lack.
        user, movie = self._ratings["user_id"], self._ratings["movie_id"]
        genre, genre_set, year = (self._shared[name][0] for name in ("genre", "genre_set", "year"))
        gender, age = (self._users.categories[name][0][self._user] for name in ("gender", "age"))
        three, two = ("like", "dislike", "rating"), ("like", "rating")
        families = (
            Rate("all", np.zeros_like(user), three, is_feature=False),
            Rate("user", user, three, "all"),
            Rate("movie", movie, three, "all"),
            Rate("genre_set", genre_set, two, "all"),
            Rate("user_recent", user, two, "user", newest=RECENT_ROWS),
            Rate("user_genre", pair(user, genre), two, "user"),
            Rate("user_genre_set", pair(user, genre_set), two, "user"),
            Rate("user_year", pair(user, year), two, "user"),
            Rate("movie_gender", pair(movie, gender), two, "movie"),
            Rate("movie_age", pair(movie, age), two, "movie"),
        )
        return RunningRates(self.time_ms, outcomes, families, smoothing)

    def schema(self) -> Schema:
        """The schema of what `rows` and `events` give."""
        fields = tuple(Categorical(name, size) for name, (_, size) in self._shared.items())
        rest = self._users.categories | self._clock
        return Schema(
            name="movielens",
            categorical=(
                Categorical("user", len(self._users.known) + 1),
                *fields,
                *(Categorical(name, size) for name, (_, size) in rest.items()),
            ),
            multi_valued=(Categorical("genres", self._movies.genre_size, table="genre"),),
            dense=self._dense_names,
            events=tuple(EventType(kind, fields, ("stars",)) for kind in EVENTS),
            tasks=(LABEL,),
            keys=KEYS,
            group="user_id",
        )

    def rows(self, rows: np.ndarray, as_of_ms: np.ndarray) -> pa.Table:
        """Examples of the ratings `rows`, with rates of what was known strictly before `as_of_ms`."""
        user = self._user[rows]
        columns: dict[str, pa.Array] = {"user": pa.array(user.astype(np.int32))}
        for name, (ids, _) in (self._shared | self._clock).items():
            columns[name] = pa.array(ids[rows].astype(np.int32))
        for name, (ids, _) in self._users.categories.items():
            columns[name] = pa.array(ids[user].astype(np.int32))
        columns["genres"] = self._movies.genres.take(self._movie[rows])
        columns |= {name: pa.array(values) for name, values in self._dense(rows, as_of_ms).items()}
        columns[LABEL] = pa.array((self._ratings["rating"][rows] >= 4).astype(np.float32))
        columns["request_time_ms"] = pa.array(self.time_ms[rows])
        columns["history_key"] = pa.array(self._ratings["user_id"][rows])
        columns |= {name: pa.array(self._ratings[name][rows]) for name in KEYS}
        return pa.table(columns)

    def _dense(self, rows: np.ndarray, as_of_ms: np.ndarray) -> dict[str, np.ndarray]:
        year = self._movies.year[self._movie[rows]]
        dense = {"release_year": np.where(year > 0, (year - 1980) / 20, 0).astype(np.float32)}
        if self._rates is None:
            return dense
        dense |= self._rates.features(rows, as_of_ms)
        before = self._rates.sums["user"].before(self._ratings["user_id"][rows], as_of_ms)
        dense["user_gap_seconds"] = log_gap(self.time_ms[rows], before.last_ms)
        return dense

    def events(self) -> dict[str, pa.Table]:
        """Events by type, in order of user and time; events in the same second keep the order of the file."""
        user, stars = self._ratings["user_id"], self._ratings["rating"]
        order = np.argsort(user, kind="stable")  # ratings are already in order of time
        tables = {}
        for kind, (low, high) in EVENTS.items():
            rows = order[(stars[order] >= low) & (stars[order] <= high)]
            columns = {"history_key": pa.array(user[rows]), "time_ms": pa.array(self.time_ms[rows])}
            columns |= {name: pa.array(ids[rows].astype(np.int32)) for name, (ids, _) in self._shared.items()}
            columns["stars"] = pa.array(((stars[rows] - 3) / 2).astype(np.float32))
            tables[kind] = pa.table(columns)
        return tables


def _find(root: Path) -> Path:
    for folder in (root, root / "ml-1m"):
        if (folder / FILES[0]).is_file():
            return folder
    raise OFFICIAL.error(root, f"neither it nor its ml-1m holds {FILES[0]}; expected the files {', '.join(FILES)}")


def _read_ratings(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """The ratings in order of time and file, without exact duplicates, int64; and how many lines there were."""
    columns = ("user_id", "movie_id", "rating", "timestamp")
    check_whole(path, OFFICIAL, f"lines of {'::'.join(columns)}")
    # The separator is '::', but Arrow splits only at single characters: every other column is empty.
    names = [columns[0], "gap1", columns[1], "gap2", columns[2], "gap3", columns[3]]
    types = {name: pa.string() if name.startswith("gap") else pa.int64() for name in names}
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=names),
            parse_options=csv.ParseOptions(delimiter=":", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
        )
    except pa.ArrowInvalid as error:
        raise OFFICIAL.error(path, f"is not lines of {'::'.join(columns)}: {error}") from error
    # Seconds of the years 1995 to 2009; the ratings are of 2000 to 2003. Milliseconds are far outside.
    bounds = {"user_id": (1, 10**9), "movie_id": (1, 10**9), "rating": (1, 5), "timestamp": (788918400, 1262304000)}
    for name in names:
        column = table[name]
        if name not in bounds:
            wrong, right = column.is_valid().to_numpy(), "'::' between the columns"
        else:
            low, high = bounds[name]
            values = column.fill_null(-1).to_numpy()
            wrong, right = (values < low) | (values > high), f"{low} .. {high}"
        if wrong.any():
            line = int(np.argmax(wrong))
            raise OFFICIAL.error(path, f"line {line + 1} holds {column[line].as_py()!r} as {name}; expected {right}")
    kept = distinct_rows([table[name].to_numpy() for name in columns])
    kept = kept[np.argsort(table["timestamp"].to_numpy()[kept], kind="stable")]
    return {name: table[name].to_numpy()[kept] for name in columns}, table.num_rows


def _read_lines(path: Path, columns: tuple[str, ...]) -> tuple[list[list[str]], np.ndarray]:
    """The fields of the lines of a small file, sorted by id, the first field; and these ids, int64."""
    check_whole(path, OFFICIAL, f"lines of {'::'.join(columns)}")
    lines = []
    for number, line in enumerate(path.read_text("latin-1").splitlines(), 1):
        fields = line.split("::")
        if len(fields) != len(columns) or not fields[0].isdecimal():
            raise OFFICIAL.error(path, f"line {number} is {line!r}; expected {'::'.join(columns)}")
        lines.append(fields)
    lines.sort(key=lambda fields: int(fields[0]))
    ids = np.array([int(fields[0]) for fields in lines], np.int64)
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        raise OFFICIAL.error(path, f"holds {columns[0]} {ids[twice[0]]} twice; expected unique ids")
    return lines, ids
