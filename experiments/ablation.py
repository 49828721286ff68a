"""The paper's ablations on the synthetic world: ``python -m experiments.ablation``, with the flags of a comparison.

Short for ``python -m experiments.compare ablation``; the rows are in `experiments.comparisons.ablation`.
"""

import sys

from experiments import compare


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    return compare.main(["ablation", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
