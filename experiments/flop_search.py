"""A Kunlun whose parts save the FLOPs that the paper's do: the search that kunlun/paper comes from.

    python -m experiments.flop_search

Draws models and histories at random, seeded, counts the three shares of `experiments.flop_shares` in closed form, and
shows the nearest to what is published and what those within three points have in common. Cost: a minute on one core.

Result: 67 of 20,000 within three points, the nearest 0.6 away (8 types as large as clicks, 2 as impressions, 35
GFLOPs). With the synthetic world's three types (``--types 2 1``) 15 of 6,089, the nearest 1.5: kunlun/paper, here on
512 rows. What binds: four layers or more, since without CompSkip the third attention is read only if a layer pools
after it (with three layers the nearest is 10.6 away); histories of up to 2000 events, else the window saves too little
(up to 1500: 3.6, up to 1000: 12.9); and few events of the small types, 12% to 16% of all in each of the 67, else
personalization saves more than is published.
"""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import tyro

from experiments.flop_shares import Lengths, distance, forward_flops, shares, shown
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource
from kunlun_jax.models.config import EventConfig, KunlunConfig

CHOICES: dict[str, tuple[Any, ...]] = {
    "big": (1, 2, 2, 2, 4, 8),
    "small": (1, 1, 1, 2, 4),
    "activity": (10.0, 30.0, 100.0),
    "longest": (500, 1000, 1500, 2000),
    "longest_small": (250, 500, 1000, 1500, 2000),
    "ffn_width": (128, 256),
    "embedding_dim": (64, 128),
    "layers": (3, 4, 5, 6),
    "summary_tokens": (16, 32, 64),
    "experts": (2, 4, 8),
    "fm_tokens": (8, 16, 32),
    "linear_tokens": (8, 16, 32),
    "fm_rank": (8, 16, 24, 32),
    "fm_hidden": ((1024,), (2048,), (2048, 1024), (4096, 2048)),
}
"""What the search draws from: numbers of event types of either size, the world's impressions per day of its least
active person, where histories of either size are cut, and what readers say nothing of. F is M's."""


def model_of(drawn: Mapping[str, Any], big: tuple[str, ...], small: tuple[str, ...]) -> KunlunConfig:
    """A drawn model, with d 384, 256 seeds, k 8 and the two sizes of event types as readers print them (r)."""
    sizes = {"seeds": 256, "ffn_width": drawn["ffn_width"], "kron_rank": 8}
    clicks = EventConfig(dim=256, heads=8, tokens=32, layers=3, window=100, **sizes)
    free = [field for field in CHOICES if field in KunlunConfig.__dataclass_fields__]
    return KunlunConfig(
        dim=384,
        head_hidden=(1024, 256),
        events=dict.fromkeys(big, clicks) | dict.fromkeys(small, clicks.halved()),
        **{field: drawn[field] for field in free},
    )


@functools.cache
def world(activity: float) -> tuple[Schema, Lengths]:
    """The synthetic world's schema, and the uncut histories of 512 of its rows."""
    config = SyntheticConfig(impressions_per_day=activity, history_limit=max(CHOICES["longest"]))
    source = SyntheticSource(config)
    rows = np.linspace(0, config.train_rows - 1, 512).astype(np.int64)
    return source.schema, {event.name: source.history_lengths(rows, event.name) for event in source.schema.events}


@functools.cache
def data_of(
    big: int, small: int, activity: float, longest: int, longest_small: int
) -> tuple[Schema, Lengths, tuple[str, ...], tuple[str, ...]]:
    """Schema and histories with so many types of either size, and their names.

    Two and one are the synthetic world's clicks and purchases, and its impressions; more are more of the same.
    """
    schema, uncut = world(activity)
    kinds = [("click", "purchase")[i % 2] for i in range(big)] + ["impression"] * small
    names = tuple(kind if kind not in kinds[:i] else f"{kind}_{i}" for i, kind in enumerate(kinds))
    events = tuple(dataclasses.replace(schema.event(kind), name=name) for kind, name in zip(kinds, names, strict=True))
    cut = [longest] * big + [longest_small] * small
    lengths = {n: uncut[kind].clip(max=most) for n, kind, most in zip(names, kinds, cut, strict=True)}
    return dataclasses.replace(schema, events=events), lengths, names[:big], names[big:]


@dataclasses.dataclass(frozen=True)
class Found:
    """A draw of the search: its values by the names of `CHOICES`, its shares, and its FLOPs per example."""

    drawn: Mapping[str, Any]
    shares: Mapping[str, float]
    flops: float


def search(draws: int, seed: int = 0) -> list[Found]:
    """So many drawn models, the nearest to the published shares first.

    Histories of small types are never longer than those of big ones.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
        drawn["longest_small"] = min(drawn["longest_small"], drawn["longest"])
        data = ("big", "small", "activity", "longest", "longest_small")
        schema, lengths, big, small = data_of(*(drawn[name] for name in data))
        model = model_of(drawn, big, small)
        found.append(Found(drawn, shares(model, schema, lengths, forward_flops), forward_flops(model, schema, lengths)))
    return sorted(found, key=lambda one: distance(one.shares))


NEAR = 0.03
"""Distance that counts as agreement: three points."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags."""

    draws: int = 20_000
    """Models to draw."""
    seed: int = 0
    """Of the draws."""
    best: int = 5
    """How many to show."""
    types: tuple[int, int] | None = None
    """Of those with so many big and small event types alone; 2 1 are the synthetic world's three."""


def report(found: list[Found], best: int) -> str:
    """The best draws, and how many of those within three points have each value."""
    lines = []
    for one in found[:best]:
        values = ", ".join(f"{name} {value}" for name, value in one.drawn.items())
        lines += [shown(one.shares), f"{one.flops / 1e9:.2f} GFLOPs: {values}", ""]
    near = [one for one in found if distance(one.shares) <= NEAR]
    lines.append(f"{len(near)} of {len(found)} within 3 points; by value, and the least distance with it in points:")
    for name, values in CHOICES.items():
        tally = Counter(one.drawn[name] for one in near)
        least: dict[Any, float] = {}
        for one in found:
            least.setdefault(one.drawn[name], distance(one.shares))
        seen = [value for value in dict.fromkeys(values) if value in least]
        lines.append(f"  {name}: " + ", ".join(f"{v}: {tally[v]} ({100 * least[v]:.1f})" for v in seen))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, searches and prints; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.flop_search", description=__doc__)
    found = search(args.draws, args.seed)
    if args.types is not None:
        found = [one for one in found if (one.drawn["big"], one.drawn["small"]) == args.types]
    print(report(found, args.best))
    return 0


if __name__ == "__main__":
    sys.exit(main())
