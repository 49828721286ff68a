"""The people, items and event streams of the synthetic world; `kunlun_jax.data.sets.synthetic` describes it in words.

Everything is a hash of counters (splitmix64): a trait of user ``u`` is a hash of ``(seed, u)``, event ``j`` of her
stream of one type a hash of ``(seed, u, type, j)`` and of her interests at its time. So any event of any user is
computed by itself, without earlier events, and nothing is stored except small lookup tables.
"""

import dataclasses
import hashlib

import numpy as np

from kunlun_jax.data.dataset import gather_ranges

DAY_MS = 86_400_000
START_MS = 1_704_067_200_000  # Monday, 2024-01-01 00:00 UTC

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOOKUP_BITS = 16
_MOST_INTERESTS = 5


def stream(seed: int, name: str) -> np.uint64:
    """Key of an independent stream of random numbers."""
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little"))


def draw(key: np.ndarray | np.uint64, counter: np.ndarray | int) -> np.ndarray:
    """64 random bits, uint64, of every `counter` (integers of any sign) of stream `key`; broadcasts, at least 1-d."""
    bits = np.atleast_1d(counter).astype(np.uint64) * _GOLDEN + key
    bits ^= bits >> np.uint64(30)
    bits *= _MIX_1
    bits ^= bits >> np.uint64(27)
    bits *= _MIX_2
    bits ^= bits >> np.uint64(31)
    return bits


def uniform(bits: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1) from 64 random bits."""
    return (bits >> np.uint64(11)) * 2.0**-53


def field(bits: np.ndarray, low: int, count: int) -> np.ndarray:
    """`count` of the bits, from bit `low` up, as int64; disjoint fields of one draw are independent."""
    return ((bits >> np.uint64(low)) & np.uint64((1 << count) - 1)).astype(np.int64)


def zipf_lookup(size: int, exponent: float) -> np.ndarray:
    """Inverse of a Zipf law's distribution function at 2**16 points, int64: indexed by 16 random bits."""
    weight = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    points = (np.arange(1 << _LOOKUP_BITS) + 0.5) / (1 << _LOOKUP_BITS)
    return np.searchsorted(np.cumsum(weight) / weight.sum(), points).clip(max=size - 1)


@dataclasses.dataclass(frozen=True)
class StreamLaw:
    """How events of one type come about.

    Attributes:
      session: events that come in one burst.
      spread: share of the time between bursts that one burst may take.
      interest: probability that the event's topic is one of the user's interests.
      browse: probability that it is the topic that its session is about, whoever the user is.
      loyalty: probability that its brand is the user's favourite of that topic. What remains follows popularity.
    """

    session: int
    spread: float
    interest: float
    browse: float
    loyalty: float


STREAMS = {
    "impression": StreamLaw(session=8, spread=0.05, interest=0.2, browse=0.35, loyalty=0.05),
    "click": StreamLaw(session=4, spread=0.1, interest=0.6, browse=0.1, loyalty=0.35),
    "purchase": StreamLaw(session=1, spread=1.0, interest=0.85, browse=0.0, loyalty=0.7),
}
CANDIDATE = StreamLaw(session=1, spread=1.0, interest=0.4, browse=0.2, loyalty=0.35)


@dataclasses.dataclass(frozen=True)
class Users:
    """Traits of the users of some rows; every array is ``[rows]``."""

    key: np.ndarray  # uint64, of the user's own random streams
    interests: np.ndarray  # int64, 2 to 5 interests at a time
    segment: np.ndarray  # int64
    country: np.ndarray  # int64
    joined_ms: np.ndarray  # int64, no event is earlier
    active: np.ndarray  # bool, False for guests, who leave no events
    period_ms: dict[str, np.ndarray]  # int64, event type -> time between bursts


@dataclasses.dataclass(frozen=True)
class Events:
    """The newest events of some rows' users before given times, oldest first; arrays over events unless noted."""

    row: np.ndarray  # int64, position of the row in the call
    splits: np.ndarray  # int64 [rows + 1]
    time_ms: np.ndarray  # int64
    item: np.ndarray  # int64
    dwell: np.ndarray  # float32 in (0, 1]


class World:
    """Lookup tables of one seed, and the functions that compute users, events and candidates from them.

    Args:
      seed: of everything random.
      topics: how many, each with items of `brands_per_topic` brands.
      brands: how many; one brand is in several topics.
      brands_per_topic: a power of two at most 256.
      items_per_brand: items of one brand in one topic, rank 0 the most popular.
      countries: of the users.
      segments: of the users.
      prices: price bands.
      tags: vocabulary of item tags.
      impressions_per_day: of the least active user who is not a guest.
      drift_days: time in which one interest of a user gives way to the next.
    """

    def __init__(
        self,
        *,
        seed: int,
        topics: int,
        brands: int,
        brands_per_topic: int,
        items_per_brand: int,
        countries: int,
        segments: int,
        prices: int,
        tags: int,
        impressions_per_day: float,
        drift_days: float,
    ):
        self.seed, self.topics, self.brands_per_topic, self.segments = seed, topics, brands_per_topic, segments
        self.impressions_per_day, self.drift_ms = impressions_per_day, drift_days * DAY_MS
        self.items = topics * brands_per_topic * items_per_brand
        self._topic_lookup = zipf_lookup(topics, 0.7)
        self._interest_lookup = zipf_lookup(topics, 0.3)
        self._brand_lookup = zipf_lookup(brands_per_topic, 0.6)
        self._rank_lookup = zipf_lookup(items_per_brand, 1.0)
        self._country_lookup = zipf_lookup(countries, 0.5)
        # Row n: which of n interests an event concerns; the first is the strongest.
        self._slot_lookup = np.stack([zipf_lookup(max(n, 1), 0.5)[::16] for n in range(_MOST_INTERESTS + 1)])

        # Item number = (rank * brands per topic + brand slot) * topics + topic, so popular items have low numbers.
        item = np.arange(self.items)
        self.item_topic = item % topics
        slot = item // topics % brands_per_topic
        first = field(draw(stream(seed, "brands"), np.arange(topics)), 0, 31) % brands
        self.item_brand = (first[self.item_topic] + slot) % brands
        bits = draw(stream(seed, "items"), item)
        self.item_price = field(bits, 0, 31) % prices
        # 1 to 4 different tags: an arithmetic progression modulo the vocabulary.
        self.item_tag_count = 1 + field(bits, 31, 2)
        step = 1 + field(bits, 33, 15) % max(tags // 4, 1)
        self.item_tags = (field(bits, 48, 15)[:, None] + step[:, None] * np.arange(4)) % tags

    def users(self, user: np.ndarray) -> Users:
        """Traits of `user` (int64)."""
        key = draw(stream(self.seed, "users"), user)
        traits = draw(key, 1)
        more = draw(key, 2)
        # Pareto activity: few people make most of the events. Clicks per impression and purchases per click differ.
        activity = (1.0 - uniform(draw(key, 3))) ** (-1 / 1.2)
        rate = {"impression": self.impressions_per_day * activity}
        rate["click"] = rate["impression"] * (0.15 + 0.45 * field(traits, 32, 16) / 65536)
        rate["purchase"] = rate["click"] * (0.1 + 0.35 * field(traits, 48, 16) / 65536)
        # Most people joined during the 240 days before the first request, one in 25 during the 10 days after it.
        days = -240 + 250 * field(more, 0, 24) / (1 << 24)
        return Users(
            key=key,
            interests=2 + field(traits, 0, 2),
            segment=field(traits, 2, 14) * self.segments >> 14,
            country=self._country_lookup[field(traits, 16, 16)],
            joined_ms=START_MS + (days * DAY_MS).astype(np.int64),
            active=field(more, 24, 12) >= 0.08 * 4096,
            # No user makes more than one event of a type per second, however far the tail reaches.
            period_ms={
                name: law.session * np.maximum(DAY_MS / rate[name], 1000.0).astype(np.int64)
                for name, law in STREAMS.items()
            },
        )

    def _event_key(self, users: Users, event: str) -> np.ndarray:
        return draw(users.key, 16 + list(STREAMS).index(event))

    def _times(
        self, event: str, key: np.ndarray, joined: np.ndarray, period: np.ndarray, j: np.ndarray, bits: np.ndarray
    ) -> np.ndarray:
        """Time of event number `j`, int64 ms, never falling with `j`: session ``n`` lies in period ``n``."""
        law = STREAMS[event]
        session = j // law.session
        begin = uniform(draw(~key, session)) * (1.0 - law.spread)
        within = (j - session * law.session + field(bits, 0, 24) / (1 << 24)) * (law.spread / law.session)
        offset = ((begin + within) * period).astype(np.int64)
        return joined + session * period + np.minimum(offset, period - 1)

    def counts(self, users: Users, event: str, before_ms: np.ndarray) -> np.ndarray:
        """Events strictly before `before_ms` (int64 ``[rows]``), int64.

        Periods before the one that contains the time count in full; only the few events of that one are examined.
        """
        size = STREAMS[event].session
        period = users.period_ms[event]
        session = np.maximum((before_ms - users.joined_ms) // period, 0)
        j = session[:, None] * size + np.arange(size)
        key = self._event_key(users, event)[:, None]
        time = self._times(event, key, users.joined_ms[:, None], period[:, None], j, draw(key, j))
        return np.where(users.active, session * size + (time < before_ms[:, None]).sum(axis=1), 0)

    def events(self, users: Users, event: str, count: np.ndarray, limit: int) -> Events:
        """The newest `limit` of the first `count` (int64 ``[rows]``) events of each row's user."""
        j, splits = gather_ranges(np.maximum(count - limit, 0), count)
        row = np.repeat(np.arange(len(count)), np.diff(splits))
        key = self._event_key(users, event)[row]
        bits = draw(key, j)
        time = self._times(event, key, users.joined_ms[row], users.period_ms[event][row], j, bits)
        topic = self._session_topics(key, j // STREAMS[event].session)
        item = self._items(STREAMS[event], users.key[row], users.interests[row], time, bits, topic)
        dwell = ((field(bits, 48, 16) + 1) / 65536).astype(np.float32)
        return Events(row, splits, time, item, dwell)

    def candidates(self, users: Users, time_ms: np.ndarray, impressions: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Items to score, int64 ``[rows]``: of the user's interests, of the topic last browsed, or popular ones.

        Args:
          users: of the rows.
          time_ms: request time, int64 ``[rows]``.
          impressions: impressions before it, int64 ``[rows]``.
          bits: 64 random bits of each row.
        """
        session = np.maximum(impressions - 1, 0) // STREAMS["impression"].session
        topic = self._session_topics(self._event_key(users, "impression"), session)
        return self._items(CANDIDATE, users.key, users.interests, time_ms, bits, topic)

    def interest(self, key: np.ndarray, slot: np.ndarray, time_ms: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Topic of interest number `slot` of the users `key` at a time; `chance` in [0, 1) decides during a change.

        Interest 0 stays for life. The others change once in `drift_days`, each at its own phase, and gradually: the
        probability of the next topic follows a smooth step over the whole period.
        """
        phase = uniform(key) + slot / _MOST_INTERESTS
        epoch = (time_ms - START_MS) / self.drift_ms + phase
        whole = np.floor(epoch)
        part = epoch - whole
        whole = (whole + (chance < part * part * (3 - 2 * part))).astype(np.int64) * (slot > 0)
        return self._interest_lookup[field(draw(~key, whole * 8 + slot), 0, 16)]

    def _session_topics(self, key: np.ndarray, session: np.ndarray) -> np.ndarray:
        return self._topic_lookup[field(draw(~key, session), 0, 16)]

    def _items(
        self,
        law: StreamLaw,
        key: np.ndarray,
        interests: np.ndarray,
        time_ms: np.ndarray,
        bits: np.ndarray,
        session_topic: np.ndarray,
    ) -> np.ndarray:
        more = draw(~bits, 0)
        slot = self._slot_lookup[interests, field(bits, 36, 12)]
        of_interest = self.interest(key, slot, time_ms, field(more, 48, 8) / 256)
        cause = field(bits, 24, 12) / 4096
        popular = self._topic_lookup[field(more, 0, 16)]
        topic = np.where(cause < law.interest + law.browse, session_topic, popular)
        topic = np.where(cause < law.interest, of_interest, topic)
        favourite = field(draw(key, 1024 + topic), 0, 8) % self.brands_per_topic
        brand = np.where(field(more, 56, 8) < law.loyalty * 256, favourite, self._brand_lookup[field(more, 16, 16)])
        rank = self._rank_lookup[field(more, 32, 16)]
        return (rank * self.brands_per_topic + brand) * self.topics + topic
