"""Do depth and width pay at 600,000 rows? The rows of `experiments.comparisons.sizes`.

    python -m experiments.compare sizes_600k

8 to 20 minutes per seed on two CPU cores.
"""

from experiments.compare import Comparison
from experiments.comparisons.sizes import COLUMNS, SIZES

COMPARISON = Comparison(
    rows={name: f"kunlun/small {flags} --data.train-rows 600000".replace("  ", " ") for name, flags in SIZES.items()},
    columns=COLUMNS,
)
