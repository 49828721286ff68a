"""Families of models for `experiments.scaling_law`: six sizes of each system over two decades of useful FLOPs.

Each system has one dial. It grows width, the events that are read, and what else its paper grows: Kunlun tokens, seeds
and the personalized width, with one expert, since among so few tokens two that see half of them each were no better,
and with the product of every two tokens in place of those of low rank; InterFormer the rank and width of its
interaction; neither of them depth, since more layers gained nothing (LOG.md); Wukong first depth, then
tokens, rank and MLP width; HSTU the candidate's MLP; DIN its activation unit and its head. A size is flags of
`experiments.train`; a test counts the FLOPs of each.
"""

from collections.abc import Mapping

SIZES = 6
"""Sizes of a family, evenly spaced in the logarithm of FLOPs, as nearly as whole widths allow."""
EVENTS = (20, 35, 65, 120, 200, 350)
"""Newest events that are read of each type, the same for every system."""


def _family(preset: str, dial: Mapping[str, tuple[int | str, ...]]) -> tuple[str, ...]:
    """A preset's sizes as flags; a key of `dial` may be several flags that take the same value."""
    dial = {"--loader.max-events": EVENTS, **dial}
    return tuple(
        " ".join([preset, *(f"{flag} {values[size]}" for flags, values in dial.items() for flag in flags.split())])
        for size in range(SIZES)
    )


FAMILIES = {
    "kunlun": _family(
        "kunlun/small",
        {
            "--model.dim --model.embedding-dim --model.event.dim": (8, 12, 18, 26, 36, 56),
            "--model.layers --model.event.layers": (1,) * SIZES,
            "--model.summary-tokens": (2, 4, 4, 6, 8, 8),
            "--model.event.heads": (1, 1, 1, 1, 2, 2),
            "--model.event.tokens": (2, 2, 3, 4, 4, 4),
            "--model.event.seeds": (4, 4, 6, 8, 8, 12),
            "--model.event.ffn-width": (8, 12, 18, 24, 32, 64),
            "--model.experts": (1,) * SIZES,
            "--model.fm-tokens --model.linear-tokens": (4, 6, 8, 10, 12, 16),
            "--model.fm-products": ("pairs",) * SIZES,
            "--model.fm-hidden": (16, 32, 64, 96, 128, 192),
            "--model.head-hidden": (16, 24, 32, 48, 64, 96),
        },
    ),
    "interformer": _family(
        "interformer/small",
        {
            "--model.dim --model.embedding-dim": (4, 8, 12, 20, 28, 40),
            "--model.layers": (1,) * SIZES,
            "--model.heads": (1, 1, 2, 2, 2, 2),
            "--model.cross-rank": (4, 8, 16, 32, 64, 96),
            "--model.interaction-hidden": (12, 16, 32, 96, 192, 320),
            "--model.head-hidden": (16, 24, 32, 48, 64, 96),
        },
    ),
    "wukong": _family(
        "wukong/small",
        {
            "--model.dim --model.embedding-dim": (8, 12, 16, 24, 36, 48),
            "--model.layers": (1, 1, 2, 2, 3, 4),
            "--model.history-tokens": (1, 2, 2, 4, 4, 4),
            "--model.fm-tokens --model.linear-tokens": (2, 4, 8, 12, 16, 20),
            "--model.fm-rank": (4, 8, 8, 12, 16, 20),
            "--model.fm-hidden": (16, 48, 72, 128, 128, 192),
            "--model.head-hidden": (16, 24, 32, 48, 64, 96),
        },
    ),
    "hstu": _family(
        "hstu/small",
        {
            "--model.dim --model.embedding-dim": (8, 12, 16, 24, 36, 44),
            "--model.layers": (1, 1, 2, 2, 2, 3),
            "--model.heads": (1, 1, 2, 2, 2, 2),
            "--model.candidate-hidden": (16, 32, 48, 64, 128, 256),
            "--model.head-hidden": (16, 24, 32, 48, 64, 96),
        },
    ),
    "din": _family(
        "din/small",
        {
            "--model.dim --model.embedding-dim": (8, 12, 16, 28, 40, 56),
            "--model.unit-hidden": ("8 4", "12 6", "16 8", "20 10", "32 16", "48 24"),
            "--model.head-hidden": ("32 16", "64 32", "128 64", "192 96", "384 192", "768 384"),
        },
    ),
}
"""System -> its sizes, smallest first, as a preset and flags of `experiments.train`."""
# At unit length an id that was never trained would weigh in products as much as any other, and behind a norm it would
# be as loud; GDPA changes an event by 1, where embeddings start at .01. HSTU gains by MaskNet instead,
# and as hstu/movielens by blocks that start small and a head that reads the features, too (LOG.md).
_SHORT = "--model.no-unit-products --model.embedding-scale 0.01"
_CHOSEN = {
    "kunlun": f"{_SHORT} --model.no-token-norm --model.event-input mlp --model.ffn-layer-scale 0.01",
    "interformer": _SHORT,
    "hstu": "--model.event-input masknet --model.branch-start 0.01 --model.head-context",
    "wukong": f"{_SHORT} --model.no-token-norm",
}
MOVIELENS = {
    system: f"--model.wide --model.dropout 0.2 --optimizer.table-learning-rate 0.05 {_CHOSEN.get(system, '')}".strip()
    for system in FAMILIES
}
"""System -> what it has on MovieLens, where most ids are rare, otherwise than in its preset small, as flags."""
