"""Does a decade of FLOPs gain Kunlun more, beside InterFormer, once there are 600,000 rows to learn from?

    python -m experiments.compare longer_pass

Sizes of both families of `experiments.scaling_law`, at the rates that its rule found for 150,000 rows. 4 to 45
minutes each on a CPU core. "of more layers" is Kunlun's family as it was, two or three layers for one of the same
FLOPs, "low rank" the same with X X^T Y in place of the products of every two tokens.
"""

from experiments.compare import Comparison
from experiments.scaling_families import FAMILIES

INTERFORMER_RATES = (0.003, 0.003, 0.0021, 0.0014, 0.001, 0.001)
"""By size, of results/cpu/scaling_law.json; Kunlun's are all the same."""
_DIMS = "--model.dim {0} --model.embedding-dim {0} --model.event.dim {0} --model.event.ffn-width {1}"
_LAYERS = "--model.layers {0} --model.event.layers {0} --model.event.heads 2 --model.event.window {1}"
DEEPER = {
    2: f"{_DIMS.format(16, 16)} {_LAYERS.format(2, 12)} --model.summary-tokens 6",
    3: f"{_DIMS.format(24, 24)} {_LAYERS.format(2, 16)} --model.fm-hidden 64",
    4: f"{_DIMS.format(32, 32)} {_LAYERS.format(2, 16)}",
    5: f"{_DIMS.format(40, 48)} {_LAYERS.format(3, 24)} --model.fm-hidden 160",
}
"""Size -> flags that make it as wide and deep as Kunlun's family was, as many FLOPs."""
LOW_RANK = {2: "--model.fm-rank 6 --optimizer.learning-rate 0.0062", 4: "--model.fm-rank 8"}
"""Size -> flags, with the rate that the rule found for it."""
KUNLUN = tuple(f"{flags} --data.train-rows 600000 --optimizer.learning-rate 0.003" for flags in FAMILIES["kunlun"])
COMPARISON = Comparison(
    rows={f"kunlun, size {size}": flags for size, flags in enumerate(KUNLUN)}
    | {
        f"interformer, size {size}": f"{flags} --data.train-rows 600000 --optimizer.learning-rate {rate}"
        for size, (flags, rate) in enumerate(zip(FAMILIES["interformer"], INTERFORMER_RATES, strict=True))
    }
    | {f"kunlun of more layers, size {size}": f"{KUNLUN[size]} {flags}" for size, flags in DEEPER.items()}
    | {
        f"low rank, more layers, size {size}": f"{KUNLUN[size]} {DEEPER[size]} --model.fm-products low_rank {flags}"
        for size, flags in LOW_RANK.items()
    },
    seeds=(0,),
    columns=("test ne", "valid ne", "flops", "parameters"),
)
