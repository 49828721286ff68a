"""Kunlun and DIN on the BARS board's AmazonElectronics_x1, beside what the board has of DIN.

    python -m experiments.compare amazonelectronics_x1 --data.root amazonelectronics

Never run, for the data is not here; docs/own_data.md says how to get and convert it. The published numbers are the
board's (reczoo/BARS at 5b5e61f, docs/CTR/leaderboard/amazonelectronics_x1.csv), of models chosen on the test rows;
its highest AUC is that of DIEN with gAUC .8856, AUC .8888, LogLoss .4257.
"""

from experiments.compare import Comparison

COMPARISON = Comparison(
    rows={"Kunlun": "kunlun/amazonelectronics_x1", "DIN": "din/amazonelectronics_x1"},
    metric="logloss",
    columns=("test auc", "test gauc", "test logloss", "parameters", "examples/s"),
    published={"DIN": "gAUC .8835, AUC .8860, LogLoss .4302"},
)
