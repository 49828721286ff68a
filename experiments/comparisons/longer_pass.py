"""Does a decade of FLOPs gain Kunlun more, beside InterFormer, once there are 600,000 rows to learn from?

    python -m experiments.compare longer_pass

Sizes of both families of `experiments.scaling_law`, at the rates that its rule found for 150,000 rows. 4 to 45
minutes each on a CPU core. "of low rank" is Kunlun with X X^T Y in place of the products of every two tokens.
"""

from experiments.compare import Comparison
from experiments.scaling_families import FAMILIES

RATES = {
    "kunlun": (0.003, 0.003, 0.003, 0.003, 0.003, 0.003),
    "interformer": (0.003, 0.003, 0.0021, 0.0014, 0.001, 0.001),
}
"""By size, of results/cpu/scaling_law.json."""
LOW_RANK = {2: "--model.fm-rank 6 --optimizer.learning-rate 0.0062", 4: "--model.fm-rank 8"}
"""Size -> flags, with the rate that the rule found for it."""
COMPARISON = Comparison(
    rows={
        f"{system}, size {size}": f"{FAMILIES[system][size]} --data.train-rows 600000 --optimizer.learning-rate {rate}"
        for system, rates in RATES.items()
        for size, rate in enumerate(rates)
    }
    | {
        f"kunlun of low rank, size {size}": f"{FAMILIES['kunlun'][size]} --data.train-rows 600000 "
        f"--optimizer.learning-rate 0.003 --model.fm-products low_rank {flags}"
        for size, flags in LOW_RANK.items()
    },
    seeds=(0,),
    columns=("test ne", "valid ne", "flops", "parameters"),
)
