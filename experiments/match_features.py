"""Features one would count by hand: how often, and how recently, a history mentions the candidate.

For every event type and every pair of a context feature and an event field that share a table (`Schema.matches`): the
events whose id is the candidate's, as log(1 + count), both plain and decaying with age. The half-lives cover what
people may remember; they are not fitted to any data set. A model that learns from histories must find these features
by itself, so it is compared with trees that are given them.
"""

import numpy as np

from kunlun_jax.data.dataset import Rows
from kunlun_jax.data.schema import Schema

HALF_LIFE_DAYS = (3.0, 10.0, 30.0, 90.0)
DAY_MS = 86_400_000


def history_lengths(schema: Schema, rows: Rows) -> np.ndarray:
    """log(1 + events) of each event type, float32 ``[rows, event types]``."""
    lengths = [np.diff(rows.events[event.name].splits) for event in schema.events]
    return (
        np.log1p(np.stack(lengths, axis=1, dtype=np.float32)) if lengths else np.zeros((len(rows.row), 0), np.float32)
    )


def match_counts(schema: Schema, rows: Rows) -> np.ndarray:
    """log(1 + matching events), float32 ``[rows, columns]``: by event type, then pair, then plain and by half-life."""
    count = len(rows.row)
    columns = []
    for event in schema.events:
        history = rows.events[event.name]
        owner = np.repeat(np.arange(count), np.diff(history.splits))
        age_days = (rows.request_time_ms[owner] - history.time_ms) / DAY_MS
        fading = [np.ones(len(owner)), *(0.5 ** (age_days / days) for days in HALF_LIFE_DAYS)]
        for context, field in schema.matches(event.name):
            same = history.ids[:, field] == rows.categorical[owner, context]
            columns += [np.bincount(owner[same], weight[same], count) for weight in fading]
    return np.log1p(np.stack(columns, axis=1)).astype(np.float32) if columns else np.zeros((count, 0), np.float32)
