"""Kunlun and DIN on the BARS board's TaobaoAd_x1, beside what the board has of DIN.

    python -m experiments.compare taobaoad_x1 --data.root taobaoad

Never run, for the data is not here; docs/own_data.md says how to get and convert it. The published numbers are the
board's (reczoo/BARS at 5b5e61f, docs/CTR/leaderboard/taobaoad_x1.csv), of models chosen on the test rows; its highest
AUC is that of DIEN with gAUC .5769, AUC .6529, LogLoss .1928.
"""

from experiments.compare import Comparison

COMPARISON = Comparison(
    rows={"Kunlun": "kunlun/taobaoad_x1", "DIN": "din/taobaoad_x1"},
    metric="logloss",
    columns=("test auc", "test gauc", "test logloss", "parameters", "examples/s"),
    published={"DIN": "gAUC .5765, AUC .6524, LogLoss .1924"},
)
