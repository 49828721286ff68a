"""Kunlun and DIN on the BARS board's KuaiVideo_x1, beside what the board has of DIN.

    python -m experiments.compare kuaivideo_x1 --data.root kuaivideo

Never run, for the data is not here; docs/own_data.md says how to get and convert it. The published numbers are the
board's (reczoo/BARS at 5b5e61f, docs/CTR/leaderboard/kuaivideo_x1.csv), of models chosen on the test rows; its
highest AUC is that of DMIN with gAUC .6726, AUC .7508, LogLoss .4302. The board's models also read a vector of every
thumbnail; ours do not.
"""

from experiments.compare import Comparison

COMPARISON = Comparison(
    rows={"Kunlun": "kunlun/kuaivideo_x1", "DIN": "din/kuaivideo_x1"},
    metric="logloss",
    columns=("test auc", "test gauc", "test logloss", "parameters", "examples/s"),
    published={"DIN": "gAUC .6696, AUC .7495, LogLoss .4321"},
)
