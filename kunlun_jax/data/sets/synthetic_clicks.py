"""The law by which people of the synthetic world click and buy: exact probabilities, a function of only `Rows`."""

import numpy as np

from kunlun_jax.data.dataset import EventRows, Rows
from kunlun_jax.data.sets.synthetic_world import DAY_MS, draw, field, stream, uniform

DAYPARTS = 4
POSITIONS = 8
DEVICES = 3
WEEKDAYS = 7

# Columns of `Rows.categorical`, `Rows.dense` and of every event's ids, in this order.
CONTEXT = (
    "user_id",
    "item_id",
    "topic",
    "brand",
    "price",
    "segment",
    "country",
    "device",
    "position",
    "hour",
    "weekday",
)
DENSE = ("quality", "freshness", "discount", "scroll_speed")
EVENT_IDS = ("item_id", "topic", "brand", "price")

# Half-life in days of what an event says about its topic and brand, and how much it says.
HALF_LIFE_DAYS = {"impression": 10.0, "click": 20.0, "purchase": 40.0}
TOPIC_WEIGHT = {"impression": 0.12, "click": 0.9, "purchase": 1.8}
BRAND_WEIGHT = {"impression": 0.05, "click": 0.5, "purchase": 1.3}


def normal_table(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal effects, float64, a function of the seed and the name."""
    bits = draw(stream(seed, name), np.arange(int(np.prod(shape))))
    other = draw(stream(seed, name + "'"), np.arange(int(np.prod(shape))))
    return (np.sqrt(-2 * np.log1p(-uniform(bits))) * np.cos(2 * np.pi * uniform(other))).reshape(shape)


def pure_cross(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A cross of exactly ``len(shape)`` factors: its mean along any one axis is 0; its standard deviation is 1."""
    table = normal_table(seed, name, shape)
    for axis in range(len(shape)):
        table = table - table.mean(axis=axis, keepdims=True)
    return table / table.std()


class ClickLaw:
    """Effects of one seed, and the click and conversion probability of rows.

    Raises nothing: ids must be within the world's vocabularies, as its own rows are.
    """

    def __init__(
        self, *, seed: int, items: int, topics: int, brands: int, prices: int, segments: int, countries: int, tags: int
    ):
        self.seed = seed
        self.item = 0.3 * normal_table(seed, "item effect", (items,))
        self.topic = 0.4 * normal_table(seed, "topic effect", (topics,))
        self.brand = 0.25 * normal_table(seed, "brand effect", (brands,))
        self.device = 0.3 * normal_table(seed, "device effect", (DEVICES,))
        self.device_gain = 1.0 + 0.25 * pure_cross(seed, "device gain", (DEVICES,))
        self.segment_tag = 0.35 * pure_cross(seed, "segment x tag", (segments, tags))
        self.country_device = 0.3 * pure_cross(seed, "country x device", (countries, DEVICES))
        self.segment_topic_daypart = 0.5 * pure_cross(seed, "segment x topic x daypart", (segments, topics, DAYPARTS))
        self.device_price_weekday = 0.4 * pure_cross(seed, "device x price x weekday", (DEVICES, prices, WEEKDAYS))
        self.country_brand_position = 0.4 * pure_cross(
            seed, "country x brand x position", (countries, brands, POSITIONS // 2)
        )
        self.segment_device_price_daypart = 0.3 * pure_cross(
            seed, "segment x device x price x daypart", (segments, DEVICES, prices, DAYPARTS)
        )
        self.price_step = 1.0 / (prices - 1)

    def user(self, user: np.ndarray) -> np.ndarray:
        """Inclination of a user (int64) to click at all, float64, standard deviation 0.2."""
        bits = draw(stream(self.seed, "user effect"), user)
        return 0.2 * (sum(field(bits, low, 16) / 65536 for low in (0, 16, 32, 48)) - 2) / np.sqrt(4 / 12)

    def context(self, rows: Rows) -> np.ndarray:
        """What the context by itself adds to the click logit, float64 ``[rows]``."""
        column = dict(zip(CONTEXT, rows.categorical.T, strict=True))
        quality, freshness, discount, scroll = rows.dense.T.astype(np.float64)
        daypart = column["hour"] // (24 // DAYPARTS)
        tags = rows.multi_valued["tags"]
        tagged = np.repeat(np.arange(len(rows.row)), np.diff(tags.splits))
        of_tags = self.segment_tag[column["segment"][tagged], tags.values]
        cheap = 1.0 - column["price"] * self.price_step
        return (
            self.item[column["item_id"]]
            + self.topic[column["topic"]]
            + self.brand[column["brand"]]
            + self.device[column["device"]]
            + self.user(column["user_id"])
            - 0.15 * column["position"]
            + 0.6 * np.tanh(quality)
            - 0.15 * (freshness - 1.0) ** 2
            + 1.2 * discount * cheap
            - 0.3 * np.maximum(scroll, 0.0)
            + np.bincount(tagged, of_tags, len(rows.row))
            + self.country_device[column["country"], column["device"]]
            + self.segment_topic_daypart[column["segment"], column["topic"], daypart]
            + self.device_price_weekday[column["device"], column["price"], column["weekday"]]
            + self.country_brand_position[column["country"], column["brand"], column["position"] // 2]
            + self.segment_device_price_daypart[column["segment"], column["device"], column["price"], daypart]
        )

    def affinity(self, rows: Rows) -> np.ndarray:
        """How well the candidate fits the events, recent ones more than old ones, float64 ``[rows]``, not negative.

        Per type, ``log(1 + sum of 0.5 ** (age / half-life))`` over events of the candidate's topic, and the same for
        its brand; a click counts by its dwell. The weighted sum saturates.
        """
        total = np.zeros(len(rows.row))
        for event, history in rows.events.items():
            row = _row_of_events(history)
            for name, weight in (("topic", TOPIC_WEIGHT), ("brand", BRAND_WEIGHT)):
                match = _matching(rows, history, row, name)
                days = (rows.request_time_ms[row[match]] - history.time_ms[match]) / DAY_MS
                strength = np.exp2(-days / HALF_LIFE_DAYS[event])
                if event == "click":
                    strength = strength * history.dense[match, 0]
                total += weight[event] * np.log1p(np.bincount(row[match], strength, len(rows.row)))
        return 3.2 * np.tanh(total / 2.4)

    def long_term(self, rows: Rows) -> np.ndarray:
        """What old events add: purchases of the brand over 30 days ago, clicks on the topic at least 32 clicks ago."""
        purchases, clicks = rows.events["purchase"], rows.events["click"]
        row = _row_of_events(purchases)
        match = _matching(rows, purchases, row, "brand")
        match = match[rows.request_time_ms[row[match]] - purchases.time_ms[match] > 30 * DAY_MS]
        customer = np.bincount(row[match], minlength=len(rows.row))
        row = _row_of_events(clicks)
        match = _matching(rows, clicks, row, "topic")
        match = match[_newer(clicks, row)[match] >= 32]
        habit = np.bincount(row[match], minlength=len(rows.row))
        return 0.5 * np.minimum(customer, 4) + 0.4 * np.log1p(habit)

    def fatigue(self, rows: Rows) -> np.ndarray:
        """What repetition takes away: the topic among the newest 8 impressions, the item among the newest 128."""
        history = rows.events["impression"]
        row = _row_of_events(history)
        newer = _newer(history, row)
        match = _matching(rows, history, row, "topic")
        topic = np.bincount(row[match[newer[match] < 8]], minlength=len(rows.row))
        match = _matching(rows, history, row, "item_id")
        item = np.bincount(row[match[newer[match] < 128]], minlength=len(rows.row))
        return -0.35 * topic - 0.3 * np.minimum(item, 2)

    def click_logit(self, rows: Rows) -> np.ndarray:
        """Log odds of a click, float64 ``[rows]``; `rows` must hold the histories uncut."""
        device = rows.categorical[:, CONTEXT.index("device")]
        events = self.device_gain[device] * self.affinity(rows) + self.long_term(rows) + self.fatigue(rows)
        return -2.1 + self.context(rows) + events

    def terms(self, rows: Rows) -> dict[str, np.ndarray]:
        """What adds up, with a constant, to `click_logit`, by name, float64 ``[rows]`` each: what there is to learn."""
        # Looked up again here: `context` adds them in an order on which labels depend to the bit.
        column = dict(zip(CONTEXT, rows.categorical.T, strict=True))
        segment, device, price = (column[name] for name in ("segment", "device", "price"))
        daypart = column["hour"] // (24 // DAYPARTS)
        alone = {
            "user": self.user(column["user_id"]),
            "item": self.item[column["item_id"]],
            "crosses of three": self.segment_topic_daypart[segment, column["topic"], daypart]
            + self.device_price_weekday[device, price, column["weekday"]]
            + self.country_brand_position[column["country"], column["brand"], column["position"] // 2],
            "cross of four": self.segment_device_price_daypart[segment, device, price, daypart],
        }
        return {
            "other effects and pairs": self.context(rows) - sum(alone.values()),
            **alone,
            "affinity": self.device_gain[device] * self.affinity(rows),
            "old events": self.long_term(rows),
            "fatigue": self.fatigue(rows),
        }

    def conversion_logit(self, rows: Rows) -> np.ndarray:
        """Log odds of a purchase by somebody who clicked, float64 ``[rows]``."""
        price = rows.categorical[:, CONTEXT.index("price")] * self.price_step
        discount = rows.dense[:, DENSE.index("discount")].astype(np.float64)
        return -1.6 - 0.8 * price + 1.5 * discount + 0.5 * self.affinity(rows) + self.long_term(rows)

    def probability(self, rows: Rows, conversion: bool) -> np.ndarray:
        """Probability of a click, and of a click with a purchase where `conversion` is set, float64 ``[rows, tasks]``.

        Labels of `rows` are ignored.
        """
        click = _sigmoid(self.click_logit(rows))
        tasks = [click, click * _sigmoid(self.conversion_logit(rows))] if conversion else [click]
        return np.stack(tasks, axis=1)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def _row_of_events(history: EventRows) -> np.ndarray:
    return np.repeat(np.arange(len(history.splits) - 1), np.diff(history.splits))


def _newer(history: EventRows, row: np.ndarray) -> np.ndarray:
    """How many events of the row are newer, for each event."""
    return history.splits[1:][row] - 1 - np.arange(len(row))


def _matching(rows: Rows, history: EventRows, row: np.ndarray, name: str) -> np.ndarray:
    """Numbers of the events whose id `name` is that of the candidate."""
    wanted = rows.categorical[:, CONTEXT.index(name)][row]
    return np.flatnonzero(history.ids[:, EVENT_IDS.index(name)] == wanted)
