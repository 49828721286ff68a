"""KuaiRand-Pure (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624): the official files as a data set for `is_click`.

A row is an impression of a short video. Rows are sorted by `time_ms`; rows of the same time keep the order of the
files. Exact duplicates (all columns equal) are dropped and counted. The day and the hour of a row are those of
`time_ms` in China (UTC+8): the official columns `date` and `hourmin` disagree with it in 1% and 18% of the rows.

Inputs of a row are what was known before it: columns of the user and video files, the tab, the hour, the duration of
the video, running rates over strictly earlier rows, and histories of strictly earlier events. No outcome of the row
itself or of a row in the same millisecond is among them. ``video_features_statistic_pure.csv`` is not read at all: its
counts run over the whole period, so they reveal the future.

All rows of the logs feed histories and rates, even those of days that are in no split.

Live histories bias gAUC where users have few rows: given that a user clicked once on a day, an earlier click makes a
later one less likely. Hence ``valid_frozen`` and ``test_frozen``: the same rows, but with histories and all rates cut
before the user's first row of the split.
"""

import dataclasses
import datetime
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from kunlun_jax.data.dataset import Dataset, DatasetConfig
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.data.sets.official import (
    Conversion,
    Lists,
    Official,
    distinct_rows,
    index_of,
    open_official,
    padded_vocabulary,
    read_csv,
    split_lists,
    write_prepared,
)
from kunlun_jax.data.sets.rates import UNIT, Rate, RunningRates, first_times, log_count, log_gap, log_scaled, pair
from kunlun_jax.ranges import above, check

VERSION = 1
"""Part of the cache's fingerprint: raise it whenever the files written for the same input change."""

LABEL = "is_click"
KEYS = ("user_id", "video_id", "time_ms")

OFFICIAL = Official("KuaiRand-Pure", "https://kuairand.com")
USER_FILE = "user_features_pure.csv"
VIDEO_FILE = "video_features_basic_pure.csv"
STANDARD_LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
RANDOM_LOGS = ("log_random_4_22_to_5_08_pure.csv",)

LOG_FLAGS = (
    "is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter",
    "is_rand",
)  # fmt: skip
LOG_NUMBERS = (
    "user_id", "video_id", "date", "hourmin", "time_ms", "play_time_ms", "duration_ms", "profile_stay_time",
    "comment_stay_time", "tab",
)  # fmt: skip
USER_CATEGORIES = (
    "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range",
    "fans_user_num_range", "friend_user_num_range", "register_days_range", *(f"onehot_feat{i}" for i in range(18)),
)  # fmt: skip
USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_CATEGORIES = (
    "video_type", "upload_dt", "upload_type", "visible_status", "server_width", "server_height", "music_id",
    "music_type",
)  # fmt: skip

TABS = 15
DURATION_SECONDS = (5, 7, 10, 12, 15, 18, 22, 26, 32, 40, 50, 60, 75, 90, 120, 150, 180, 240, 300, 450, 600)
"""Lower bounds of the duration buckets; bucket 0 holds videos of unknown duration, which is 0 in the log."""
DURATION_BUCKETS = len(DURATION_SECONDS) + 2
MAX_PLAY_RATIO = 5.0
RECENT_ROWS = 10

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_CHINA_MS = 8 * _HOUR_MS
_MAX_AGE_DAYS = 120


def _date(field: str, day: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(day)
    except ValueError:
        raise ValueError(f"{field} holds {day!r}; it must be a date like '2022-05-03'") from None


@dataclasses.dataclass(frozen=True)
class KuaiRandConfig(DatasetConfig):
    """How KuaiRand-Pure becomes a data set. Days are ISO dates in China time, first and last, inclusive."""

    train_days: tuple[str, str] = ("2022-04-25", "2022-05-02")
    """First and last day of the training split."""
    valid_days: tuple[str, str] = ("2022-05-03", "2022-05-03")
    """First and last day of the validation split, after the training days."""
    test_days: tuple[str, str] = ("2022-05-04", "2022-05-04")
    """First and last day of the test split, after the validation days."""
    rates: bool = True
    """Provide running click, long-view and play rates of users, videos, authors, tags and pairs as dense features."""
    smoothing: float = 10.0
    """Impressions that the prior of a running rate is worth."""
    frozen: bool = True
    """Also write valid_frozen and test_frozen: histories and rates cut before the user's first row of the split."""
    random_log: Literal["ignore", "history"] = "ignore"
    """Whether the log of randomly shown videos, if present, feeds histories and rates. Its rows are never examples."""

    signs = ("log_standard_*_pure.csv", "data/log_standard_*_pure.csv", "KuaiRand-Pure/data/log_standard_*")
    public = True

    RANGES: ClassVar = {"smoothing": above(0)}

    def __post_init__(self):
        check(self, "data")
        before = "", datetime.date.min
        for field in ("train_days", "valid_days", "test_days"):
            first, last = (_date(field, day) for day in getattr(self, field))
            if last < first:
                raise ValueError(f"{field} is {getattr(self, field)}; its last day must not be before its first")
            if first <= before[1]:
                raise ValueError(f"{field} starts on {first}; it must start after {before[0]}, which ends {before[1]}")
            before = field, last

    def days(self, split: str) -> tuple[int, int]:
        """First and last day of a split, days since 1970-01-01."""
        first, last = (datetime.date.fromisoformat(day) for day in getattr(self, f"{split}_days"))
        epoch = datetime.date(1970, 1, 1)
        return (first - epoch).days, (last - epoch).days

    def open(self, root: Path | None, cache: Path | None) -> Dataset:
        """`open_dataset`."""
        assert root is not None
        return open_dataset(root, cache, self)


def open_dataset(root: Path, cache: Path | None = None, config: KuaiRandConfig = KuaiRandConfig()) -> Dataset:
    """The data set of the official files under `root`, converted into the cache folder unless already there.

    Args:
      root: the folder KuaiRand-Pure, its folder data, or the folder that contains KuaiRand-Pure.
      cache: folder for prepared data, by default `kunlun_jax.data.cache.default_cache`.
      config: days of the splits, and which features.

    Raises:
      ValueError: a file is missing or damaged; the message names it and where to fetch it. Or a split has no rows.
    """
    folder, logs = _find(Path(root), config)
    inputs = [folder / name for name in (USER_FILE, VIDEO_FILE, *logs)]
    return open_official(cache, "kuairand", VERSION, inputs, config, lambda out: convert(folder, out, config))


def convert(root: Path, out: Path, config: KuaiRandConfig = KuaiRandConfig()) -> Conversion:
    """Converts the official files under `root` into the prepared layout in the new folder `out`; see `open_dataset`."""
    folder, names = _find(Path(root), config)
    users, videos = _Users.read(folder / USER_FILE), _Videos.read(folder / VIDEO_FILE)
    log, rows_read = _Log.read(folder, names)
    table = _Examples(log, users, videos, config)
    splits: dict[str, pa.Table] = {}
    for split in ("train", "valid", "test"):
        first, last = config.days(split)
        rows = np.flatnonzero((log.day >= first) & (log.day <= last) & (log["is_rand"] == 0))
        if len(rows) == 0:
            days = np.array([log.day.min(), log.day.max()]).astype("datetime64[D]")
            raise ValueError(
                f"{split}_days {getattr(config, f'{split}_days')} hold no row of {folder}; its days are "
                f"{days[0]} to {days[1]} (China time)"
            )
        splits[split] = table.rows(rows, log["time_ms"][rows])
        if config.frozen and split != "train":
            cutoff = first_times(log["user_id"][rows], log["time_ms"][rows])
            frozen = table.rows(rows, cutoff)
            splits[f"{split}_frozen"] = frozen.append_column("history_time_ms", pa.array(cutoff))
    events = table.events()
    report = Conversion(
        name="kuairand",
        rows_read=rows_read,
        duplicates=rows_read - len(log["time_ms"]),
        splits={name: rows.num_rows for name, rows in splits.items()},
        positive_rate={name: float(np.mean(rows[LABEL].to_numpy())) for name, rows in splits.items()},
        events={name: rows.num_rows for name, rows in events.items()},
    )
    write_prepared(out, table.schema(), splits, events, report)
    return report


@dataclasses.dataclass(frozen=True)
class _Log:
    """The impressions in order of time, without exact duplicates; int64 columns under their official names."""

    columns: dict[str, np.ndarray]
    day: np.ndarray  # int64 [rows], days since 1970-01-01 in China

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @staticmethod
    def read(folder: Path, names: tuple[str, ...]) -> tuple["_Log", int]:
        """The log, and how many rows its files held."""
        tables = [_read_log(folder / name) for name in names]
        read = {name: np.concatenate([t[name].to_numpy() for t in tables]) for name in tables[0].column_names}
        kept = distinct_rows(list(read.values()))
        kept = kept[np.argsort(read["time_ms"][kept], kind="stable")]
        columns = {name: values[kept] for name, values in read.items()}
        return _Log(columns, (columns["time_ms"] + _CHINA_MS) // _DAY_MS), len(read["time_ms"])


@dataclasses.dataclass(frozen=True)
class _Users:
    """The user file; row 0 stands for users that are not in it."""

    known: np.ndarray  # int64 [users], sorted
    categories: dict[str, tuple[np.ndarray, int]]  # column -> ids [users + 1], number of ids
    dense: dict[str, np.ndarray]  # float32 [users + 1]

    @staticmethod
    def read(path: Path) -> "_Users":
        types = {"user_id": pa.int64()} | dict.fromkeys(USER_CATEGORIES, pa.string())
        table = _read_features(path, types | dict.fromkeys(USER_COUNTS, pa.float64()))
        return _Users(
            known=table["user_id"].to_numpy(),
            categories={name: padded_vocabulary(table[name]) for name in USER_CATEGORIES},
            dense={name: log_scaled(_padded(table[name])) for name in USER_COUNTS},
        )


@dataclasses.dataclass(frozen=True)
class _Videos:
    """The video file; row 0 stands for videos that are not in it."""

    known: np.ndarray  # int64 [videos], sorted
    categories: dict[str, tuple[np.ndarray, int]]  # column -> ids [videos + 1], number of ids; author_id is among them
    dense: dict[str, np.ndarray]  # float32 [videos + 1]
    upload_day: np.ndarray  # float64 [videos + 1], days since 1970-01-01, NaN where unknown
    tags: Lists
    first_tag: np.ndarray  # int64 [videos + 1]
    tag_size: int

    @staticmethod
    def read(path: Path) -> "_Videos":
        types: dict[str, pa.DataType] = {"video_id": pa.int64()}
        types |= dict.fromkeys((*VIDEO_CATEGORIES, "author_id", "tag"), pa.string())
        types |= {"upload_dt": pa.date32(), "video_duration": pa.float64()}
        types |= dict.fromkeys(("server_width", "server_height"), pa.float64())
        table = _read_features(path, types)
        tags, first_tag, tag_size = split_lists(table["tag"], ",")
        width, height = (_padded(table[name]) for name in ("server_width", "server_height"))
        sized = (width > 0) & (height > 0)
        aspect = np.log(np.divide(width, height, out=np.ones_like(width), where=sized))
        return _Videos(
            known=table["video_id"].to_numpy(),
            categories={name: padded_vocabulary(table[name]) for name in ("author_id", *VIDEO_CATEGORIES)},
            dense={
                "video_duration": log_scaled(_padded(table["video_duration"]) / 1000),
                "aspect_ratio": aspect.astype(np.float32),
            },
            upload_day=_padded(table["upload_dt"].cast(pa.int32())),
            tags=tags,
            first_tag=np.append(0, first_tag),
            tag_size=tag_size,
        )


class _Examples:
    """Columns of examples and events, and the schema they follow."""

    def __init__(self, log: _Log, users: _Users, videos: _Videos, config: KuaiRandConfig):
        self._log, self._users, self._videos = log, users, videos
        self._user, self._video = index_of(log["user_id"], users.known), index_of(log["video_id"], videos.known)
        seconds = log["duration_ms"] / 1000
        bucket = np.where(seconds > 0, np.searchsorted(DURATION_SECONDS, seconds, side="right") + 1, 0)
        hour = (log["time_ms"] + _CHINA_MS) % _DAY_MS // _HOUR_MS
        author, authors = videos.categories["author_id"]
        # What context and events have in common: ids and their number; the tables are shared.
        self._shared = {
            "video": (self._video, len(videos.known) + 1),
            "author": (author[self._video], authors),
            "tag": (videos.first_tag[self._video], videos.tag_size),
            "tab": (log["tab"], TABS),
            "duration": (bucket, DURATION_BUCKETS),
            "hour": (hour, 24),
        }
        # Watching for longer than the video lasts means watching it again: 1 for the rates, up to 5 in the histories.
        play = np.divide(log["play_time_ms"], log["duration_ms"], out=np.zeros_like(seconds), where=seconds > 0)
        self._play_ratio = np.minimum(play, MAX_PLAY_RATIO)
        self._rates = self._running_rates(config.smoothing) if config.rates else None
        self._dense_names = tuple(self._dense(np.zeros(0, np.int64), np.zeros(0, np.int64)))

    def _running_rates(self, smoothing: float) -> RunningRates:
        outcomes = {
            "click": self._log["is_click"] * UNIT,
            "long_view": self._log["long_view"] * UNIT,
            "play": np.floor(np.minimum(self._play_ratio, 1) * UNIT).astype(np.int64),
        }
        # The official id, because the log distinguishes even users and videos that the feature files lack.
        user, video = self._log["user_id"], self._log["video_id"]
        author, tag, tab, duration = (self._shared[name][0] for name in ("author", "tag", "tab", "duration"))
        both, three = ("click", "long_view"), tuple(outcomes)
        families = (
            Rate("all", np.zeros_like(user), three, is_feature=False),
            Rate("user", user, three, "all"),
            Rate("video", video, three, "all"),
            Rate("author", author, three, "all"),
            Rate("tag", tag, both, "all"),
            Rate("tab", tab, both, "all"),
            Rate("user_recent", user, three, "user", newest=RECENT_ROWS),
            Rate("user_tab", pair(user, tab), both, "user"),
            Rate("user_tag", pair(user, tag), both, "user"),
            Rate("user_author", pair(user, author), both, "user"),
            Rate("user_duration", pair(user, duration), both, "user"),
            Rate("video_tab", pair(video, tab), both, "video"),
        )
        return RunningRates(self._log["time_ms"], outcomes, families, smoothing)

    def schema(self) -> Schema:
        """The schema of what `rows` and `events` give."""
        columns = {**self._users.categories, **self._videos.categories}
        del columns["author_id"]  # is the feature author
        fields = tuple(Categorical(name, size) for name, (_, size) in self._shared.items())
        outcomes = (Categorical("is_click", 2), Categorical("long_view", 2))
        kinds = ("click", "long_view", "like", "follow")
        return Schema(
            name="kuairand",
            categorical=(
                Categorical("user", len(self._users.known) + 1),
                *fields,
                *(Categorical(name, size) for name, (_, size) in columns.items()),
            ),
            multi_valued=(Categorical("tags", self._videos.tag_size, table="tag"),),
            dense=self._dense_names,
            events=(
                *(EventType(kind, fields, ("play_ratio",)) for kind in kinds),
                EventType("impression", (*fields, *outcomes), ("play_ratio",)),
            ),
            tasks=(LABEL,),
            keys=KEYS,
            group="user_id",
        )

    def rows(self, rows: np.ndarray, as_of_ms: np.ndarray) -> pa.Table:
        """Examples of the log's rows `rows`, with rates of what was known strictly before `as_of_ms`."""
        log, user, video = self._log, self._user[rows], self._video[rows]
        columns: dict[str, pa.Array] = {"user": pa.array(user.astype(np.int32))}
        columns |= {name: pa.array(ids[rows].astype(np.int32)) for name, (ids, _) in self._shared.items()}
        for place, features in ((user, self._users.categories), (video, self._videos.categories)):
            for name, (ids, _) in features.items():
                if name != "author_id":
                    columns[name] = pa.array(ids[place].astype(np.int32))
        columns["tags"] = self._videos.tags.take(video)
        columns |= {name: pa.array(values) for name, values in self._dense(rows, as_of_ms).items()}
        columns[LABEL] = pa.array(log[LABEL][rows].astype(np.float32))
        columns["request_time_ms"] = pa.array(log["time_ms"][rows])
        columns["history_key"] = pa.array(log["user_id"][rows])
        columns |= {name: pa.array(log[name][rows]) for name in KEYS}
        return pa.table(columns)

    def _dense(self, rows: np.ndarray, as_of_ms: np.ndarray) -> dict[str, np.ndarray]:
        log, user, video = self._log, self._user[rows], self._video[rows]
        dense = {name: values[user] for name, values in self._users.dense.items()}
        dense |= {name: values[video] for name, values in self._videos.dense.items()}
        dense["duration_seconds"] = log_scaled(log["duration_ms"][rows] / 1000)
        age = np.clip(log.day[rows] - np.nan_to_num(self._videos.upload_day[video], nan=np.inf), 0, _MAX_AGE_DAYS)
        dense["video_age_days"] = (age / 30).astype(np.float32)
        if self._rates is None:
            return dense
        dense |= self._rates.features(rows, as_of_ms)
        time_ms = log["time_ms"][rows]
        by_user, key = self._rates.sums["user"], log["user_id"][rows]
        today = by_user.before(key, as_of_ms, since_ms=log.day[rows] * _DAY_MS - _CHINA_MS)
        dense["user_today_count"] = log_count(today.count)
        last_ms = by_user.before(key, as_of_ms).last_ms
        dense["user_gap_seconds"] = log_gap(time_ms, last_ms)
        return dense

    def events(self) -> dict[str, pa.Table]:
        """Events by type, in order of user and time; events of the same time keep the order of the log."""
        log = self._log
        order = np.lexsort((log["time_ms"], log["user_id"]))
        marks = {"click": "is_click", "long_view": "long_view", "like": "is_like", "follow": "is_follow"}
        tables = {kind: self._event_table(order[log[mark][order] == 1]) for kind, mark in marks.items()}
        impressions = self._event_table(order)
        for name in ("is_click", "long_view"):
            impressions = impressions.append_column(name, pa.array(log[name][order].astype(np.int32)))
        return tables | {"impression": impressions}

    def _event_table(self, rows: np.ndarray) -> pa.Table:
        columns = {name: pa.array(self._log[name][rows]) for name in ("user_id", "time_ms")}
        columns |= {name: pa.array(ids[rows].astype(np.int32)) for name, (ids, _) in self._shared.items()}
        columns["play_ratio"] = pa.array(self._play_ratio[rows].astype(np.float32))
        columns["history_key"] = columns.pop("user_id")
        return pa.table(columns)


def _find(root: Path, config: KuaiRandConfig) -> tuple[Path, tuple[str, ...]]:
    """The folder with the official files, and the logs to read, standard ones first."""
    wanted = STANDARD_LOGS + (RANDOM_LOGS if config.random_log == "history" else ())
    for folder in (root, root / "data", root / "KuaiRand-Pure" / "data"):
        logs = tuple(name for name in wanted if (folder / name).is_file())
        if any(name in STANDARD_LOGS for name in logs):
            return folder, logs
    expected = f"{', '.join((USER_FILE, VIDEO_FILE))} and at least one of {', '.join(STANDARD_LOGS)}"
    raise OFFICIAL.error(root, f"neither it nor its data nor its KuaiRand-Pure/data holds a log; expected {expected}")


def _read_log(path: Path) -> pa.Table:
    table = read_csv(path, dict.fromkeys((*LOG_FLAGS, *LOG_NUMBERS), pa.int64()), OFFICIAL)
    # Milliseconds of the years 2020 to 2029; the log is of 2022. Seconds or microseconds are far outside.
    bounds = dict.fromkeys(LOG_NUMBERS, (0, np.iinfo(np.int64).max)) | dict.fromkeys(LOG_FLAGS, (0, 1))
    bounds |= {"time_ms": (1_577_836_800_000, 1_893_456_000_000), "tab": (0, TABS - 1)}
    for name, (low, high) in bounds.items():
        values = table[name].to_numpy()
        wrong = np.flatnonzero((values < low) | (values > high))
        if len(wrong):
            raise OFFICIAL.error(
                path, f"column {name!r} holds {values[wrong[0]]} in data row {wrong[0] + 1}; expected {low} .. {high}"
            )
    return table


def _read_features(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """A feature file sorted by its id, the first column; all other columns may be empty."""
    key, *rest = types
    table = read_csv(path, types, OFFICIAL, nullable=rest).sort_by(key)
    ids = table[key].to_numpy()
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice) or ids[0] < 0:
        wrong = ids[twice[0] if len(twice) else 0]
        problem = "twice" if len(twice) else "as an id"
        raise OFFICIAL.error(path, f"column {key!r} holds {wrong} {problem}; expected unique ids from 0 on")
    return table


def _padded(column: pa.ChunkedArray) -> np.ndarray:
    """A column as float64 with a missing row in front; NaN where nothing is known."""
    return np.append(np.nan, column.cast(pa.float64()).to_numpy())
