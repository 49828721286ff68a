"""Which part of Kunlun makes the end of its scaling law flat? Size 4 of its family, one thing changed per row.

    python -m experiments.compare flat_end

From 3.4 MFLOPs on Kunlun's law in the synthetic world gains little (`experiments.scaling_law`). Parts that the family
grows slowly or not at all are made larger and smaller here, and GDPA's scale and values are changed, at the rate that
the law's rule found. Three minutes a seed on a CPU core. What more layers do is told by `longer_pass`.
"""

from experiments.compare import Comparison
from experiments.scaling_families import FAMILIES

_WHOLE = f"{FAMILIES['kunlun'][4]} --optimizer.learning-rate 0.003"
CHANGES = {
    "1 head": "--model.event.heads 1",
    "6 heads": "--model.event.heads 6",
    "tau 1": "--model.ffn-tau 1",
    "tau 16": "--model.ffn-tau 16",
    "scale after the activation": "--model.ffn-scale post",
    "no free part of V": "--model.ffn-free-values 0",
    "GDPA twice as wide": "--model.event.ffn-width 64",
    "3 seeds": "--model.event.seeds 3",
    "24 seeds": "--model.event.seeds 24",
    "8 event tokens": "--model.event.tokens 8",
    "16 summary tokens": "--model.summary-tokens 16",
    "deep net twice as wide": "--model.fm-hidden 256",
    "head four times as wide": "--model.head-hidden 256",
}
COMPARISON = Comparison(
    rows={"size 4": _WHOLE} | {name: f"{_WHOLE} {flags}" for name, flags in CHANGES.items()},
    columns=("test ne", "valid ne", "flops", "parameters"),
)
