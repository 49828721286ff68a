"""What three parts of Kunlun do to useful FLOPs: window attention, CompSkip, event-level personalization.

    python -m experiments.flop_shares                                        of kunlun/paper, beside what is published
    python -m experiments.flop_shares --preset kunlun/large --length 1000    of another, all histories of one length

A share is FLOPs with the part over FLOPs without it alone, less one: forward, per example, valid events only. Without
window attention an event sees its whole history, without CompSkip every layer runs everything, without personalization
every type has the largest one's sizes. Nothing is trained and no weight is made. Cost: half a minute on one core, most
of it the click rate of the world, which opening it works out. Result for kunlun/paper, in the order above: -30.3%,
-42.9% and -10.5%, published -29.5%, -43.1% and -11% (R, R, r), together 1.4 points apart.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping

import numpy as np
import tyro
from flax import nnx

from experiments.configs import PRESETS
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.schema import Schema
from kunlun_jax.flops import total_flops
from kunlun_jax.models.config import EventConfig, KunlunConfig, layer_plan
from kunlun_jax.models.system import shared_features
from kunlun_jax.nn.attention import WHOLE_HISTORY
from kunlun_jax.training.run import sample_lengths
from pallas_kernels.operators.window_attention.shapes import pairs

Lengths = Mapping[str, np.ndarray]
"""Event type -> events of each example."""
Count = Callable[[KunlunConfig, Schema, Lengths], float]
"""Useful forward FLOPs per example."""
PUBLISHED = {"window attention": -0.295, "CompSkip": -0.431, "event-level personalization": -0.11}
"""FLOPs with it over FLOPs without it, less one (R, R, r)."""


def counted(config: KunlunConfig, schema: Schema, lengths: Lengths) -> float:
    """The sum of `Kunlun.parts`, of a model that is shapes alone."""
    rates = (0.1,) * len(schema.tasks)
    model = nnx.eval_shape(lambda: config.build(schema, base_rate=rates, rngs=nnx.Rngs(0)))
    return total_flops(model.parts(lengths))


def mlp(*sizes: int) -> int:
    """FLOPs of linear layers of these widths, per row."""
    return sum(2 * a * b for a, b in itertools.pairwise(sizes))


def forward_flops(config: KunlunConfig, schema: Schema, lengths: Lengths) -> float:
    """`counted` in closed form, to which a test holds it: a thousand times as fast, for the search."""
    types = sorted(config.event_types(tuple(event.name for event in schema.events)))
    d, embedding = config.dim, config.embedding_dim
    embedded = len(schema.categorical) + len(schema.multi_valued)
    dense = len(schema.dense) + (len(types) if config.history_lengths else 0)
    projects = embedding != d and embedded > 0
    total = embedded * mlp(embedding, d) * projects + mlp(dense, config.dense_tokens * d)
    tokens = embedded + (config.dense_tokens if dense else 0)
    tables = [feature.table_name for feature in (*schema.categorical, *schema.multi_valued)]
    plans, rows = {}, {}
    for name in types:
        event, own = schema.event(name), config.for_event(name)
        rows[name] = lengths[name].mean()
        inputs = len(event.categorical) * embedding + len(event.dense) + config.rank_feature + config.age_feature
        each = mlp(inputs, own.dim, own.dim) + (config.event_input == "masknet") * mlp(inputs, own.dim, inputs)
        tied = len(shared_features(event, tables)) if config.tied_events and projects else 0
        total += rows[name] * (each + tied * mlp(embedding, min(d, own.dim)))
        plans[name] = layer_plan(config, own)
    history = sum(config.for_event(name).tokens for name in types)
    for index in range(config.layers):
        personalized = config.ffn_kind == "personalized" and any("ffn" in plans[name][index] for name in types)
        if personalized or config.interaction_context == "summary":
            per_token = mlp(d, d, d) + config.summary_gate * mlp(d, d)
            total += d * mlp(tokens, config.summary_tokens) + config.summary_tokens * per_token
        for name in types:
            total += of_events(config, config.for_event(name), plans[name][index], lengths[name], rows[name])
        context = tokens if config.interaction_context == "context" else config.summary_tokens
        total += interaction(config, context + history)
        tokens = config.experts * (config.fm_tokens + config.linear_tokens)
    read = (config.layers if config.head_reads == "all" else 1) * tokens * d
    total += mlp(read, *config.head_hidden, len(schema.tasks))
    first = embedded + (config.dense_tokens if dense else 0)
    return total + config.wide * mlp(first * d, len(schema.tasks))


def of_events(
    config: KunlunConfig, event: EventConfig, parts: frozenset[str], lengths: np.ndarray, rows: float
) -> float:
    """What one layer runs on one event type."""
    dim, total = event.dim, 0.0
    if "ffn" in parts:
        total += rows * 4 * dim * event.ffn_width
        if config.ffn_kind == "personalized":
            total += 2 * (
                config.dim * mlp(config.summary_tokens, event.ffn_width) + event.ffn_width * mlp(config.dim, dim)
            )
    if "pool" in parts:
        seeds = event.tokens if config.pooling == "pma" else event.seeds
        total += seeds * mlp(dim, dim) * (1 + 1 / len(lengths)) + rows * (mlp(dim, 2 * dim) + 4 * seeds * dim)
        total += event.tokens * mlp(dim, config.dim)
        if config.pooling == "hsp":
            total += event.kron_rank * 2 * event.tokens * dim * (seeds + dim)
        elif config.pooling == "seeds":
            total += dim * mlp(seeds, event.tokens)
    if "attention" in parts:
        near = pairs(lengths, (event.window, event.window)) / len(lengths)
        total += rows * mlp(dim, 4 * dim) + 4 * dim * near
    return total


def interaction(config: KunlunConfig, tokens: int) -> float:
    """The experts of one layer."""
    total, out = 0.0, config.fm_tokens + config.linear_tokens
    for expert in range(config.experts):
        own = len(range(expert, tokens, config.experts))
        maps = config.linear_tokens + (0 if own == out else out)
        low_rank = config.fm_products == "low_rank"
        total += (4 * own * config.fm_rank if low_rank else 2 * own * own) * config.dim + config.dim * mlp(own, maps)
        products = own * config.fm_rank if low_rank else own * (own - 1) // 2
        total += mlp(products, *config.fm_hidden, config.fm_tokens * config.dim)
    return total


def without(config: KunlunConfig, types: tuple[str, ...]) -> dict[str, KunlunConfig]:
    """The config without each of the three, the others on.

    Full attention for the window; everything in every layer for CompSkip; the largest size, that of the most channels,
    for all event types.
    """
    own = {name: config.for_event(name) for name in types}
    largest = max(own.values(), key=lambda event: event.dim)
    whole = {name: dataclasses.replace(event, window=WHOLE_HISTORY) for name, event in own.items()}
    return {
        "window attention": dataclasses.replace(config, events=whole),
        "CompSkip": dataclasses.replace(config, pattern=("pool+ffn+attention",)),
        "event-level personalization": dataclasses.replace(config, events=dict.fromkeys(types, largest)),
    }


def shares(config: KunlunConfig, schema: Schema, lengths: Lengths, count: Count = counted) -> dict[str, float]:
    """The three shares, under the names of `PUBLISHED`."""
    types = config.event_types(tuple(event.name for event in schema.events))
    whole = count(config, schema, lengths)
    return {name: whole / count(other, schema, lengths) - 1 for name, other in without(config, types).items()}


def distance(found: Mapping[str, float]) -> float:
    """Absolute differences to the published shares, added up; 0.01 is a point."""
    return sum(abs(found[name] - share) for name, share in PUBLISHED.items())


def shown(found: Mapping[str, float]) -> str:
    """The three shares beside the published ones."""
    lines = [f"{name:<28} {share:>+7.1%}, published {PUBLISHED[name]:+.1%}" for name, share in found.items()]
    return "\n".join([*lines, f"together {100 * distance(found):.1f} points apart"])


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags."""

    preset: str = "kunlun/paper"
    """A preset of Kunlun, MODEL/PRESET."""
    length: int = 0
    """Events of every history; 0 takes those of the preset's training rows."""


def main(arguments: list[str] | None = None) -> int:
    """Parses flags and prints; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.flop_shares", description=__doc__)
    config = PRESETS[args.preset][1] if args.preset in PRESETS else None
    if config is None or not isinstance(config.model, KunlunConfig):
        print(f"error: preset is {args.preset!r}; it must be one of Kunlun's among {list(PRESETS)}", file=sys.stderr)
        return 2
    try:
        dataset = open_dataset(config.data)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lengths = sample_lengths(dataset, config)
    if args.length:
        lengths = {name: np.full(1, args.length) for name in lengths}
    means = ", ".join(f"{name} {events.mean():,.0f}" for name, events in lengths.items())
    flops = counted(config.model, dataset.schema, lengths)
    print(f"{args.preset}: {flops / 1e9:.3f} GFLOPs forward per example; events on average: {means}")
    print(shown(shares(config.model, dataset.schema, lengths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
