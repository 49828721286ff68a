"""Every system, logistic regression and LightGBM on KuaiRand-Pure: the same search of a rate, five seeds.

    python -m experiments.compare leaderboard_kuairand --data.root KuaiRand-Pure
    make leaderboard

For every system four rates of the dense weights are tried on one seed; the best on "valid" has the other seeds, so
eight runs of 2 to 12 minutes each on a CPU core. Presets have 1.6 to 1.8 times the FLOPs of kunlun/kuairand. LightGBM
has four settings, tried on one seed, too; it reads ids of the context and dense features, running rates among them, and
counts of events (`experiments.boosted_trees`). The regression reads all ids, those of histories, too, and has one of
six penalties (`experiments.logistic_regression`). The frozen split cuts histories and rates where the split begins.
"""

from experiments import boosted_trees, logistic_regression
from experiments.compare import Comparison
from experiments.comparisons.systems import NAMES


def leaderboard(flags: str, *, rates: tuple[str, ...] = (), frozen: bool) -> Comparison:
    """Every system with ``MODEL/`` and `flags`, at the best of `rates`, and two simple models.

    Args:
      flags: preset and flags of `experiments.train`.
      rates: of the dense weights, the same for every system (O); none: each has its preset's.
      frozen: whether the data set has a split with frozen histories.
    """
    columns = ["valid logloss", "test auc", "test logloss", "test ne", "test gauc"]
    columns += ["test_frozen gauc"] * frozen + ["flops", "parameters"]
    return Comparison(
        rows={name: f"{name}/{flags}" for name in ("kunlun", *NAMES)},
        others={
            "logistic regression": ("kunlun", logistic_regression.as_row),
            "LightGBM": ("kunlun", boosted_trees.as_row),
        },
        seedless=("logistic regression",),
        metric="logloss",
        seeds=(0, 1, 2, 3, 4),
        search=tuple(f"--optimizer.learning-rate {rate}" for rate in rates),
        columns=tuple(columns),
    )


COMPARISON = leaderboard("kuairand", rates=("2.5e-4", "5e-4", "1e-3", "2e-3"), frozen=True)
