"""The embedded data set: a world of shoppers whose click probabilities are known exactly, generated on the fly.

The world. People visit a shop's feed. Each has 2 to 5 interests: one for life, the others giving way to new ones over
`drift_days`. Activity is Pareto distributed: most people have left few events, one in twelve none, some more than a
thousand. Three kinds of events reveal the interests, rarer kinds more so: a purchase is nearly always of an interest
and often of the favourite brand, a click mostly, an impression seldom; it shows what its session was about or what is
popular. Events come in bursts; the streams of the three types are independent. Items belong to a topic, a brand and a
price band and have one to four tags; within a topic their popularity follows Zipf's law.

A row is one item shown to one person: the user by a heavy-tailed popularity, the item partly from the user's interests
of that moment, partly from the topic last browsed, partly by popularity. Requests are spread evenly over 28 days of
training, 7 of validation and 7 of test, and row numbers follow time. The log odds of a click are a function of only the
row's inputs (`kunlun_jax.data.sets.synthetic_clicks`):

* affinity: events of the candidate's topic and brand, fading with age, purchases weighing most, clicks by their dwell
  time, times a gain by device;
* old events: purchases of the brand more than 30 days ago, clicks on the topic at least 32 clicks ago;
* fatigue: the topic among the newest 8 impressions and the item among the newest 128 lower them;
* crosses of order 3 (segment x topic x daypart, device x price x weekday, country x brand x position), of order 4
  (segment x device x price x daypart) and of order 2 (segment x tags, country x device), of which each vanishes when
  averaged over any one of its factors;
* main effects of item, topic, brand, device, user and position, and four dense features, some of them not linear.

So the entropy of labels given inputs is known, and with it the least possible NE, `Dataset.floor`. The shop keeps
the newest `history_limit` events of each type and the log odds use no others: the floor holds for a reader with
``max_events >= history_limit``; one that cuts shorter sees less than the law does.

Everything is a hash of counters, so a row depends only on the configuration and its number: any size, in any order,
by any number of processes, nothing stored.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from kunlun_jax.data.dataset import Dataset, DatasetConfig, EventRows, Ragged, Rows, gather_ranges
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.data.sets.synthetic_clicks import CONTEXT, DENSE, DEVICES, POSITIONS, WEEKDAYS, ClickLaw
from kunlun_jax.data.sets.synthetic_world import (
    DAY_MS,
    START_MS,
    STREAMS,
    Events,
    Users,
    World,
    draw,
    field,
    stream,
    uniform,
)
from kunlun_jax.ranges import at_least, check, within

SPLIT_DAYS = {"train": 28, "valid": 7, "test": 7}
P_TRAIN_ROWS = 16_384
_VERSION = 1  # part of the fingerprint; raise it with any change in what is generated
_CHUNK = 1024
_LARGEST_VOCABULARY = 1 << 14  # for fields drawn from 16 bits; users and items have no such bound


@dataclasses.dataclass(frozen=True)
class SyntheticConfig(DatasetConfig):
    """Size and seed of the synthetic world."""

    seed: int = 0
    """Seed of the world: its people, items, effects and labels."""
    train_rows: int = 200_000
    """Rows of the training split, spread over 28 days."""
    valid_rows: int = 20_000
    """Rows of the validation split, spread over the 7 days after training; the same for any train_rows."""
    test_rows: int = 20_000
    """Rows of the test split, spread over the 7 days after validation; the same for any train_rows."""
    users: int = 10_000
    """People; numbers are ids, low ones make more requests."""
    topics: int = 16
    """Topics of items and interests."""
    brands: int = 32
    """Brands of items."""
    brands_per_topic: int = 8
    """Brands that offer items of one topic, at most `brands`."""
    items_per_brand: int = 24
    """Items of one brand in one topic; there are topics x brands_per_topic x items_per_brand items."""
    segments: int = 4
    """Segments of users."""
    countries: int = 6
    """Countries of users."""
    prices: int = 4
    """Price bands of items."""
    tags: int = 48
    """Vocabulary of item tags, at least 4."""
    history_limit: int = 1024
    """Newest events of each type that the shop keeps, and that a click may depend on."""
    impressions_per_day: float = 0.085
    """Impressions per day of the least active person; the mean is about six times that."""
    drift_days: float = 30.0
    """Days in which an interest gives way to the next one."""
    conversion: bool = False
    """Adds a second task, conversion: a click with a purchase."""

    RANGES: ClassVar = {
        "seed": within(0, 2**31 - 1),
        "train_rows": at_least(1),
        "valid_rows": at_least(0),
        "test_rows": at_least(0),
        "users": at_least(1),
        "brands_per_topic": at_least(1),
        "items_per_brand": at_least(1),
        "tags": within(4, _LARGEST_VOCABULARY),
        "history_limit": at_least(1),
        "impressions_per_day": within(1e-3, 1e4),
        "drift_days": within(1e-3, 1e4),
        # Crosses need two values of each factor.
        **dict.fromkeys(("topics", "brands", "segments", "countries", "prices"), within(2, _LARGEST_VOCABULARY)),
    }

    def __post_init__(self):
        check(self, "data")
        if self.brands_per_topic > min(self.brands, 256):
            raise ValueError(
                f"synthetic field 'brands_per_topic' is {self.brands_per_topic}; it must be at most 256 and at most "
                f"'brands', {self.brands}"
            )
        rows = self.train_rows + self.valid_rows + self.test_rows
        if rows >= 2**31:
            raise ValueError(f"synthetic fields train_rows + valid_rows + test_rows are {rows}; row numbers are int32")

    @property
    def split_rows(self) -> dict[str, int]:
        """Rows of each split, in order of time."""
        return {"train": self.train_rows, "valid": self.valid_rows, "test": self.test_rows}

    def open(self, root: Path | None, cache: Path | None) -> Dataset:
        """The synthetic data set; there is nothing to prepare."""
        del root, cache
        return open_dataset(self)


@functools.lru_cache(maxsize=8)
def _world(config: SyntheticConfig) -> tuple[World, ClickLaw]:
    """Lookup tables: a few hundred kB, made in milliseconds in each process that reads."""
    shared = {n: getattr(config, n) for n in ("seed", "topics", "brands", "countries", "segments", "prices", "tags")}
    world = World(
        **shared,
        brands_per_topic=config.brands_per_topic,
        items_per_brand=config.items_per_brand,
        impressions_per_day=config.impressions_per_day,
        drift_days=config.drift_days,
    )
    return world, ClickLaw(**shared, items=world.items)


@dataclasses.dataclass(frozen=True)
class _Requests:
    """What rows are before their histories are computed; arrays over rows."""

    users: Users
    user: np.ndarray  # int64
    time_ms: np.ndarray  # int64
    key: np.ndarray  # uint64, of the row's own random stream


class SyntheticSource:
    """Rows of the synthetic world as a `Source`; it holds only its configuration.

    Args:
      config: that of the world.
    """

    def __init__(self, config: SyntheticConfig):
        self.config = config
        self._schema = _schema(config)

    @property
    def schema(self) -> Schema:
        """Schema of the rows."""
        return self._schema

    @property
    def world(self) -> World:
        """People, items and event streams."""
        return _world(self.config)[0]

    @property
    def law(self) -> ClickLaw:
        """Effects from which the probabilities are made."""
        return _world(self.config)[1]

    def __len__(self) -> int:
        return sum(self.config.split_rows.values())

    def rows(self, index: np.ndarray, max_events: Mapping[str, int]) -> Rows:
        """The examples `index` (int64, any order), histories cut to the newest ``max_events[type]`` events.

        Labels are drawn from the probability given all kept events, whatever the cut.

        Raises:
          IndexError: a row number is not in the data set.
          KeyError: `max_events` lacks an event type.
        """
        uncut = self._uncut(index)
        draws = draw(self._requests(uncut.row).key, 3)
        probability = self.law.probability(uncut, self.config.conversion)
        # One draw for both tasks: a conversion is less probable than its click, so it never occurs without one.
        labels = (uniform(draws)[:, None] < probability).astype(np.float32)
        events = {e.name: _newest(uncut.events[e.name], max_events[e.name]) for e in self._schema.events}
        return dataclasses.replace(uncut, labels=labels, events=events)

    def probability(self, index: np.ndarray) -> np.ndarray:
        """Exact probability of each task's label being 1 given all inputs, float64 ``[rows, tasks]``.

        Raises:
          IndexError: a row number is not in the data set.
        """
        chunks = _chunks(index)
        return np.concatenate([self.law.probability(self._uncut(chunk), self.config.conversion) for chunk in chunks])

    def click_terms(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The log odds of a click as named terms (`ClickLaw.terms`), float64 ``[rows]`` each.

        Raises:
          IndexError: a row number is not in the data set.
        """
        found = [self.law.terms(self._uncut(chunk)) for chunk in _chunks(index)]
        return {name: np.concatenate([terms[name] for terms in found]) for name in found[0]}

    def history_lengths(self, index: np.ndarray, event: str) -> np.ndarray:
        """Events of type `event` that the shop keeps from before each request, int64, at most `history_limit`.

        Raises:
          IndexError: a row number is not in the data set.
          KeyError: there is no such event type.
        """
        self._schema.event(event)
        requests = self._requests(index)
        count = self.world.counts(requests.users, event, requests.time_ms)
        return np.minimum(count, self.config.history_limit)

    def list_lengths(self, index: np.ndarray, feature: str) -> np.ndarray:
        """Tags of each row's item, int64.

        Raises:
          IndexError: a row number is not in the data set.
          KeyError: there is no such multi-valued feature.
        """
        if feature != "tags":
            raise KeyError(f"the synthetic data set has no multi-valued feature {feature!r}; it has 'tags'")
        requests = self._requests(index)
        impressions = self.world.counts(requests.users, "impression", requests.time_ms)
        return self.world.item_tag_count[self._items(requests, impressions)].astype(np.int64)

    def keys(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """User, item and request time of the examples `index`, int64.

        Raises:
          IndexError: a row number is not in the data set.
        """
        requests = self._requests(index)
        impressions = self.world.counts(requests.users, "impression", requests.time_ms)
        return {
            "user_id": requests.user,
            "item_id": self._items(requests, impressions),
            "request_time_ms": requests.time_ms,
        }

    def _requests(self, index: np.ndarray) -> _Requests:
        """User and time of rows. A row's random stream is that of its split and its number in it."""
        index = np.asarray(index, np.int64)
        bad = index[(index < 0) | (index >= len(self))]
        if bad.size:
            raise IndexError(f"row {bad[0]} is not in the synthetic data set; rows are 0 .. {len(self) - 1}")
        key, time = np.empty(len(index), np.uint64), np.empty(len(index), np.int64)
        first, begin = 0, START_MS
        for name, size in self.config.split_rows.items():
            inside = (index >= first) & (index < first + size)
            number, span = index[inside] - first, SPLIT_DAYS[name] * DAY_MS
            keys = draw(stream(self.config.seed, f"rows of {name}"), number)
            jitter = uniform(draw(keys, 1)) * (span // max(size, 1))
            key[inside], time[inside] = keys, begin + number * span // max(size, 1) + jitter.astype(np.int64)
            first, begin = first + size, begin + span
        # Density proportional to number ** -0.4: the most popular tenth makes a quarter of the requests.
        user = (uniform(draw(key, 2)) ** (1 / 0.6) * self.config.users).astype(np.int64)
        return _Requests(self.world.users(user), user, time, key)

    def _items(self, requests: _Requests, impressions: np.ndarray) -> np.ndarray:
        bits = draw(requests.key, 4)
        return self.world.candidates(requests.users, requests.time_ms, impressions, bits)

    def _uncut(self, index: np.ndarray) -> Rows:
        """Rows with all kept events, labels still 0."""
        world = self.world
        requests = self._requests(index)
        users, time, key = requests.users, requests.time_ms, requests.key
        counts = {name: world.counts(users, name, time) for name in STREAMS}
        item = self._items(requests, counts["impression"])
        bits, noise = draw(key, 5), draw(key, 6)
        column = {
            "user_id": requests.user,
            "item_id": item,
            "topic": world.item_topic[item],
            "brand": world.item_brand[item],
            "price": world.item_price[item],
            "segment": users.segment,
            "country": users.country,
            "device": field(bits, 0, 16) * DEVICES >> 16,
            "position": field(bits, 16, 16) * POSITIONS >> 16,
            "hour": time % DAY_MS // (DAY_MS // 24),
            "weekday": (time - START_MS) // DAY_MS % WEEKDAYS,
        }
        normal = [(field(noise, low, 10) + field(noise, low + 10, 10)) / 1024 - 1 for low in (0, 20, 40)]
        dense = {
            "quality": 2.5 * normal[0],
            "freshness": np.log1p(-7.0 * np.log1p(-(field(bits, 32, 16) / 65536))),
            # Half of the items are not on sale.
            "discount": np.maximum(field(bits, 48, 16) / 32768 - 1, 0),
            "scroll_speed": 2.5 * normal[1],
        }
        tag, tag_splits = gather_ranges(item * 4, item * 4 + world.item_tag_count[item])
        return Rows(
            row=np.asarray(index, np.int64),
            categorical=np.stack([column[name] for name in CONTEXT], axis=1),
            multi_valued={"tags": Ragged(world.item_tags.reshape(-1)[tag], tag_splits)},
            dense=np.stack([dense[name] for name in DENSE], axis=1).astype(np.float32),
            events={
                name: _event_rows(world, name, world.events(users, name, counts[name], self.config.history_limit))
                for name in STREAMS
            },
            labels=np.zeros((len(item), len(self._schema.tasks)), np.float32),
            weights=np.ones(len(item), np.float32),
            request_time_ms=time,
        )


def open_dataset(config: SyntheticConfig) -> Dataset:
    """The synthetic data set.

    `Dataset.p_train` is the mean exact probability of `P_TRAIN_ROWS` evenly spaced training rows (of all, if
    there are fewer), so it costs the same for any size.
    """
    source = SyntheticSource(config)
    splits, first = {}, 0
    for name, size in config.split_rows.items():
        splits[name] = range(first, first + size)
        first += size
    sample = min(config.train_rows, P_TRAIN_ROWS)
    index = np.arange(sample, dtype=np.int64) * config.train_rows // sample
    # An exactly rounded sum, so that the number of tasks cannot change the order of addition and with it the last bit.
    p_train = tuple(math.fsum(p) / sample for p in source.probability(index).T)
    return Dataset(source, splits, p_train, fingerprint(config))


def fingerprint(config: SyntheticConfig) -> str:
    """`Dataset.fingerprint` of a world, without making it."""
    text = json.dumps({"generator": _VERSION, **dataclasses.asdict(config)}, sort_keys=True)
    return "synthetic-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _chunks(index: np.ndarray) -> list[np.ndarray]:
    """Parts of `index`, at least one, whose uncut histories fit into memory."""
    return [index[i : i + _CHUNK] for i in range(0, max(len(index), 1), _CHUNK)]


def _event_rows(world: World, name: str, events: Events) -> EventRows:
    item = events.item
    ids = np.stack([item, world.item_topic[item], world.item_brand[item], world.item_price[item]], axis=1)
    dense = events.dwell[:, None] if name == "click" else np.zeros((len(item), 0), np.float32)
    return EventRows(ids, dense, events.time_ms, events.splits, np.diff(events.splits))


def _newest(history: EventRows, limit: int) -> EventRows:
    """The newest `limit` events of every row."""
    stops = history.splits[1:]
    if len(stops) == 0 or history.available.max() <= limit:
        return history
    index, splits = gather_ranges(np.maximum(stops - limit, history.splits[:-1]), stops)
    return EventRows(history.ids[index], history.dense[index], history.time_ms[index], splits, history.available)


def _schema(config: SyntheticConfig) -> Schema:
    items = config.topics * config.brands_per_topic * config.items_per_brand
    user = Categorical("user_id", config.users, "hash")
    item = Categorical("item_id", items, "hash", "item_id")
    attributes = tuple(
        Categorical(name, size, table=name)
        for name, size in (("topic", config.topics), ("brand", config.brands), ("price", config.prices))
    )
    rest = {
        "segment": config.segments,
        "country": config.countries,
        "device": DEVICES,
        "position": POSITIONS,
        "hour": 24,
        "weekday": WEEKDAYS,
    }
    return Schema(
        name="synthetic",
        categorical=(user, item, *attributes, *(Categorical(name, size) for name, size in rest.items())),
        multi_valued=(Categorical("tags", config.tags),),
        dense=DENSE,
        events=tuple(EventType(name, (item, *attributes), ("dwell",) if name == "click" else ()) for name in STREAMS),
        tasks=("click", "conversion") if config.conversion else ("click",),
        keys=("user_id", "item_id", "request_time_ms"),
        group="user_id",
    )
