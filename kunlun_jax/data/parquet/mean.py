"""The mean of a column that streams by, without values out of all proportion (`kunlun_jax.data.dataset.usual`)."""

import numpy as np
from jaxtyping import Float32

from kunlun_jax.data.dataset import USUAL_QUANTILES, usual

_CELLS = 1 << 16


class UsualMean:
    """Sums of values in cells by their leading 16 bits, so that what is out of proportion can be told in the end.

    Values of a cell differ by less than 1%. Takes 1.5 MB, whatever comes; in which order and parts does not matter.
    """

    def __init__(self):
        self._counts, self._sums = np.zeros(_CELLS, np.int64), np.zeros(_CELLS)
        self._lowest, self._highest = np.full(_CELLS, np.inf, np.float32), np.full(_CELLS, -np.inf, np.float32)

    def add(self, values: Float32[np.ndarray, " rows"]) -> None:
        """Takes in more values; NaN is a null, and what is infinite is refused elsewhere."""
        values = values[np.isfinite(values)]
        bits = values.view(np.uint32) >> 16
        # Cells rise with their values: of negative numbers the bits rise as these fall.
        cells = np.where(bits < _CELLS // 2, bits + _CELLS // 2, _CELLS - 1 - bits).astype(np.int64)
        self._counts += np.bincount(cells, minlength=_CELLS)
        self._sums += np.bincount(cells, values, minlength=_CELLS)
        np.minimum.at(self._lowest, cells, values)
        np.maximum.at(self._highest, cells, values)

    def mean(self) -> float:
        """Of all usual values; 0 if there are none at all."""
        used = np.flatnonzero(self._counts)
        if not len(used):
            return 0.0
        counts, sums = self._counts[used], self._sums[used]
        means, ends = sums / counts, np.cumsum(counts)

        def quantile(share: float, of_cells: np.ndarray) -> float:
            """Between two values as `np.quantile` has it, each as its cell's."""
            rank = share * (ends[-1] - 1)
            cells = np.searchsorted(ends, [np.floor(rank), np.ceil(rank)], side="right")
            below, above = of_cells[cells].astype(np.float64)
            return float(below + (above - below) * (rank % 1))

        # Outer bounds of the middle, so that it is as wide as the values' own, or wider by the width of two cells.
        low, median, high = map(quantile, USUAL_QUANTILES, (self._lowest[used], means, self._highest[used]))
        kept = usual(means, low, median, high)
        return float(sums[kept].sum() / counts[kept].sum())
