"""Does a decade of FLOPs gain Kunlun more, beside InterFormer, once there are 600,000 rows to learn from?

    python -m experiments.compare longer_pass

Sizes 2 and 4 of both families of `experiments.scaling_law`, at the rates that its search found for 150,000 rows. 8 to
17 minutes each on a CPU core.
"""

from experiments.compare import Comparison
from experiments.scaling_families import FAMILIES

RATES = {("kunlun", 2): 0.0062, ("interformer", 2): 0.0021, ("kunlun", 4): 0.003, ("interformer", 4): 0.001}
"""Of results/cpu/scaling_law.json."""
COMPARISON = Comparison(
    rows={
        f"{system}, size {size}": f"{FAMILIES[system][size]} --data.train-rows 600000 --optimizer.learning-rate {rate}"
        for (system, size), rate in RATES.items()
    },
    seeds=(0,),
    columns=("test ne", "valid ne", "flops", "parameters"),
)
