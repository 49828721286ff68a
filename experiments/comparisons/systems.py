"""Every system at the FLOPs of kunlun/small, on its 150,000 rows of the synthetic world with its optimizer.

    python -m experiments.compare systems

One to six minutes per seed on two CPU cores. Learning rates were chosen for Kunlun and for InterFormer, which has
half of Kunlun's, and not tuned for the others.
"""

from experiments.compare import Comparison

NAMES = ("wukong", "interformer", "hstu", "onetrans", "dlrm", "dcnv2", "din", "pooled_product")
COMPARISON = Comparison(
    rows={"kunlun": "kunlun/small"} | {name: f"{name}/small" for name in NAMES},
    columns=("test ne", "valid ne"),
)
