"""A world with one law: a click is likelier the more of a user's events are of the candidate's topic.

Nothing else matters and nothing else helps: topics are uniform, and how long a history is says little of how many
events match (`blind` is the NE of one who knows the length alone). The probabilities are known, hence the floor.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import EventRows, Rows
from kunlun_jax.data.pack import pack
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.models.base import ModelConfig
from kunlun_jax.training.metrics import entropy, log_losses
from kunlun_jax.training.optimizer import OptimizerConfig
from kunlun_jax.training.step import Trainer
from tests.examples import splits_of

TOPICS = 16
LONGEST = 20
BATCH_SIZE = 256
STEPS = 600
TEST_ROWS = 4096
BASE, PER_MATCH, MOST = -2.0, 1.5, 3
"""Log odds without a match, what each match adds, and the matches that count at most."""

TOPIC = Categorical("topic", TOPICS, table="topic")
SCHEMA = Schema(
    name="matches",
    categorical=(TOPIC, Categorical("device", 3)),
    events=(EventType("click", (TOPIC,)),),
    tasks=("click",),
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Rows with what is known of each: its probability, and the length of its history."""

    rows: Rows
    probability: np.ndarray
    lengths: np.ndarray


def draw(count: int, seed: int) -> Drawn:
    """`count` rows of the world."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, TOPICS, count)
    lengths = rng.integers(0, LONGEST + 1, count)
    splits = splits_of(lengths)
    owner = np.repeat(np.arange(count), lengths)
    events = rng.integers(0, TOPICS, splits[-1])
    matches = np.bincount(owner, events == topic[owner], count)
    probability = 1 / (1 + np.exp(-(BASE + PER_MATCH * np.minimum(matches, MOST))))
    request = np.full(count, 1_700_000_000_000)
    # Oldest first, a minute apart.
    age = (splits[1:][owner] - np.arange(splits[-1])) * 60_000
    rows = Rows(
        row=np.arange(count),
        categorical=np.stack([topic, rng.integers(0, 3, count)], axis=1),
        multi_valued={},
        dense=np.zeros((count, 0), np.float32),
        events={
            "click": EventRows(
                events[:, None], np.zeros((len(events), 0), np.float32), request[owner] - age, splits, lengths
            )
        },
        labels=(rng.random(count) < probability).astype(np.float32)[:, None],
        weights=np.ones(count, np.float32),
        request_time_ms=request,
    )
    return Drawn(rows, probability, lengths)


def packed(drawn: Drawn) -> Batch:
    """One batch of all rows."""
    capacity = len(drawn.lengths) * (LONGEST // 8 * 8 + 8)
    return pack(SCHEMA, drawn.rows, len(drawn.lengths), {"click": capacity})[0]


def batches(steps: int, seed: int) -> Iterator[Batch]:
    """New rows for each step."""
    for step in range(steps):
        yield packed(draw(BATCH_SIZE, seed * 100_000 + step))


def mean_entropy(p: np.ndarray) -> float:
    """Of coins, in nats."""
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean())


def floor_and_blind(seed: int = 10**9) -> tuple[float, float, float]:
    """Mean probability, the least NE, and the least NE of one who knows of a history its length alone."""
    drawn = draw(200_000, seed)
    rate = float(drawn.probability.mean())
    by_length = np.bincount(drawn.lengths, drawn.probability) / np.bincount(drawn.lengths)
    floor, blind = mean_entropy(drawn.probability), mean_entropy(by_length[drawn.lengths])
    return rate, floor / entropy(rate), blind / entropy(rate)


def distance(config: ModelConfig, *, steps: int = STEPS, learning_rate: float = 3e-3, seed: int = 0) -> float:
    """NE above that of the true probabilities on the same test rows, after `steps` batches, each of new rows."""
    rate, _, _ = floor_and_blind()
    model = config.build(SCHEMA, base_rate=(rate,), rngs=nnx.Rngs(params=jax.random.key(seed)))
    optimizer = OptimizerConfig(learning_rate=learning_rate, decay="linear")
    trainer = Trainer(model, optimizer, steps=steps, log_every=steps, seed=seed)
    state = trainer.init()
    for batch in batches(steps, seed):
        state, _ = trainer.step(state, jax.device_put(batch))
    test = draw(TEST_ROWS, seed=10**9 + 1)
    logits = np.asarray(trainer.predict(state, jax.tree.map(jnp.asarray, packed(test))))[:, 0]
    labels, truth = test.rows.labels[:, 0], np.log(test.probability / (1 - test.probability))
    return float((log_losses(labels, logits) - log_losses(labels, truth)).mean() / entropy(rate))
