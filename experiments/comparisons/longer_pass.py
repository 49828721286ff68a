"""Does a decade of FLOPs gain Kunlun more, beside InterFormer, once there are 600,000 rows to learn from?

    python -m experiments.compare longer_pass

All sizes of both families of `experiments.scaling_law`, at the rates that its rule found for 150,000 rows. 4 to 40
minutes each on a CPU core.
"""

from experiments.compare import Comparison
from experiments.scaling_families import FAMILIES

RATES = {
    "kunlun": (0.003, 0.003, 0.003, 0.003, 0.003, 0.003),
    "interformer": (0.003, 0.003, 0.0021, 0.0014, 0.001, 0.001),
}
"""By size, of results/cpu/scaling_law.json."""
COMPARISON = Comparison(
    rows={
        f"{system}, size {size}": f"{FAMILIES[system][size]} --data.train-rows 600000 --optimizer.learning-rate {rate}"
        for system, rates in RATES.items()
        for size, rate in enumerate(rates)
    },
    seeds=(0,),
    columns=("test ne", "valid ne", "flops", "parameters"),
)
