"""What is each remedy worth? kunlun/small without one of them, on 150,000 rows of the synthetic world.

    python -m experiments.compare remedies

Kunlun once learned little more from the world's histories than how long they are; LOG.md explains why. Each remedy is a
field of the config. Differences smaller than those between two seeds of the same row mean nothing. A row takes three to
six minutes per seed on two CPU cores.
"""

from experiments.compare import Comparison

TAKEN_OUT = {
    "pools before the FFN": "--model.order pool_first",
    "X_sum in the interaction": "--model.interaction-context summary",
    "no tied path": "--model.no-tied-events",
    "no unit products": "--model.no-unit-products",
    "no residual in X_sum": "--model.no-summary-residual",
    "random start of maps": "--model.no-aligned",
    "no lengths": "--model.no-history-lengths",
    "no lengths, no counts in HSP": "--model.no-history-lengths --model.no-pool-counts",
    "no ranks of events": "--model.no-rank-feature",
    "no ranks in HSP": "--model.no-pool-ranks",
    "no counts in HSP": "--model.no-pool-counts",
    "no free part of V": "--model.ffn-free-values 0",
    "scale after the activation": "--model.ffn-scale post",
    "tau 32": "--model.ffn-tau 32",
    "embeddings at .05": "--model.embedding-scale 0.05",
    "MLP of events at full size": "--model.event-mlp-start 1",
    "head reads the last layer": "--model.head-reads last",
    "no histories": "--model.skip-events '*'",
}
COMPARISON = Comparison(
    rows={"whole": "kunlun/small"} | {name: f"kunlun/small {flags}" for name, flags in TAKEN_OUT.items()},
    columns=("test ne", "valid ne"),
)
