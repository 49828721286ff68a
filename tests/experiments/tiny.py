"""Runs of experiments.train so small that they compile in seconds, as flags."""

from tests.training.tiny import DATA, RUN
from tests.training.tiny import FLAGS as OF_ANY

FLAGS = ("kunlun/small", *OF_ANY)
ANY_MODEL = (
    "pooled_product/small",
    *RUN,
    *("--model.dim", "8", "--model.embedding-dim", "4", "--model.gate-hidden", "8", "--model.head-hidden", "8"),
)
"""A third of the time to compile, where the model does not matter; without data."""
ANY = (*ANY_MODEL, *DATA, "--model.skip-events", "impression", "purchase")
"""The same on the little synthetic world."""
