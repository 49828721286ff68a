"""Runs of experiments.train so small that they compile in seconds, as flags."""

from tests.training.tiny import DATA
from tests.training.tiny import FLAGS as OF_ANY

FLAGS = ("kunlun/small", *OF_ANY)
ANY_MODEL = (
    "pooled_product/small",
    *DATA,
    *("--model.dim", "8", "--model.embedding-dim", "4", "--model.gate-hidden", "8", "--model.head-hidden", "8"),
    *("--model.skip-events", "impression", "purchase", "--model.event-input", "mlp"),
)
"""A third of the time to compile, where the model does not matter."""
