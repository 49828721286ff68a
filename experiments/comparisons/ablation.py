"""The paper's ablations on kunlun/small: what each of Kunlun's parts gives and costs, beside what is published of it.

    python -m experiments.ablation
    python -m experiments.compare ablation --rows "whole" "plain FFN" --seeds 0

Each row has one thing taken out or exchanged. Three to six minutes a seed on two CPU cores. Published numbers are on
data nobody outside has, at hundreds of times the FLOPs; they are turned to the direction of the row, where a ratio is
that of the row to the whole (window attention brings FLOPs -29.5%, so full attention costs x 1.418). Histories have 31,
13 and 4 events on average here, so windows and skipped layers save far less than where they have a thousand:
`experiments.flop_shares` counts both. Rows are measured hours or days apart, so the examples/s that each stores are no
column; `experiments.mfu` compares speeds in turns.

* plain FFN: weights that all examples share. Its hidden width makes the FLOPs of the whole, those of WeightGeneration
  and of the generated weights included; at the mean history lengths of small that is 118 (a test holds it).
* no SumKronLinear: H = Z^T H_seed, as many tokens (O: what the paper's ablation has in its place is not known).
* full attention: a window longer than any history.
* sizes by event type: the one row that adds. In small all types have one size, and a base with two would be another
  one than that of every other comparison here; so personalization is put in (kunlun/by_type), not taken out.
* one expert: of all tokens, and with as many tokens and as large a deep net as the two had together.
* one expert, all products: the same whose deep net reads the product of every two tokens in place of X X^T Y (O).
* RoPE without time, no rotation: ROTE has two angles, of position and of time.
"""

from experiments.compare import Comparison
from kunlun_jax.nn.attention import WHOLE_HISTORY

PLAIN_WIDTH = 118
"""Hidden width at which the plain FFN makes the FLOPs of the whole."""
ONE_EXPERT = "--model.experts 1 --model.fm-tokens 8 --model.linear-tokens 8"
CHANGES = {
    "plain FFN": f"--model.ffn-kind plain --model.event.ffn-width {PLAIN_WIDTH}",
    "PMA for HSP": "--model.pooling pma",
    "no SumKronLinear": "--model.pooling seeds",
    "full attention": f"--model.event.window {WHOLE_HISTORY}",
    "everything in every layer": "--model.pattern pool+ffn+attention",
    "one expert": ONE_EXPERT,
    "one expert, all products": f"{ONE_EXPERT} --model.fm-products pairs",
    "HSP before the FFN": "--model.order pool_first",
    "X_sum in the interaction": "--model.interaction-context summary",
    "scale after the activation": "--model.ffn-scale post",
    "ROTE by gap": "--model.rote.reading gap",
    "RoPE without time": "--model.rote.no-time",
    "no rotation": "--model.rote.no-time --model.rote.no-position",
}
COMPARISON = Comparison(
    rows={"whole": "kunlun/small"}
    | {name: f"kunlun/small {flags}" for name, flags in CHANGES.items()}
    | {"sizes by event type": "kunlun/by_type"},
    seeds=(0, 1, 2),
    columns=("test ne", "valid ne", "flops", "executed", "parameters"),
    published={
        "plain FFN": "NE 0.04% worse, MFU 37 -> 34 (R)",
        "PMA for HSP": "NE 0.08% worse (R), QPS +8.8% (r)",
        "no SumKronLinear": "NE 0.03% worse (r)",
        "full attention": "NE neutral, FLOPs x 1.418, QPS x 0.763 (R)",
        "everything in every layer": "NE neutral, FLOPs x 1.757, QPS x 0.741 (R)",
        "one expert": "QPS x 0.962 (r)",
        "sizes by event type": "FLOPs x 0.890, QPS x 1.130 (r)",
    },
)
